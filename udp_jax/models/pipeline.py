"""Reads and writes the folders of diffusers' `StableDiffusionPipeline`, and of XL's.

model_index.json                            class of each part
unet/ vae/ text_encoder/                    config.json and safetensors (whole, sharded, fp16)
tokenizer/                                  vocab.json, merges.txt, tokenizer_config.json, ...
text_encoder_2/ tokenizer_2/                XL alone: the second text encoder
scheduler/scheduler_config.json             noise schedule

Checkpoints of one file (`models.single_file`) are read too, and so is a VAE of another file.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from udp_jax.errors import BadDataError, ConfigError, MissingDataError
from udp_jax.models import hub, places, single_file, vocabulary, weights
from udp_jax.models import performance as performance_lib
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.models.clip_text import CLIPText, CLIPTextConfig, CLIPTextProjected
from udp_jax.models.latent import TEXT, TEXT_2, UNET, VAE, cast_parts, latent_diffusion
from udp_jax.models.places import resolve
from udp_jax.models.sd_unet import UNet2DCondition, UNet2DConditionConfig
from udp_jax.models.sd_vae import AutoencoderKL, AutoencoderKLConfig
from udp_jax.models.tokenizer import EOS, Tokenizer, load_tokenizer
from udp_jax.runtime import files

# The diffusers version whose layout we write; diffusers warns about versions before 0.6.
_DIFFUSERS_VERSION = "0.39.0"
CLASSES = {
  UNET: "UNet2DConditionModel",
  VAE: "AutoencoderKL",
  TEXT: "CLIPTextModel",
  TEXT_2: "CLIPTextModelWithProjection",
}
_CONFIGS: dict[str, Any] = {
  UNET: UNet2DConditionConfig,
  VAE: AutoencoderKLConfig,
  TEXT: CLIPTextConfig,
  TEXT_2: CLIPTextConfig,
}
_HOW_TO_GET = (
  "On a machine with network access run `hf download OWNER/MODEL --local-dir FOLDER` and give the"
  " path of that folder"
)


class Pipeline(NamedTuple):
  """A latent diffusion model and the contents of its folder.

  Attributes:
    model: functions of the model.
    params: {"unet": ..., "vae": ..., "text_encoder": ...}; XL also has "text_encoder_2".
    tokenizer: the tokenizer; None for a model without a text encoder.
    configs: `UNet2DConditionConfig`, `AutoencoderKLConfig` and `CLIPTextConfig`, by part.
    scheduler: the fields of scheduler_config.json.
    tokenizer_2: XL's second tokenizer, which differs from the first in its padding; for saving.
  """

  model: DiffusionModel
  params: Params
  tokenizer: Tokenizer | None
  configs: dict[str, Any]
  scheduler: dict[str, Any]
  tokenizer_2: Tokenizer | None = None


class Choices(NamedTuple):
  """What may be taken in place of a model's own; "" keeps what the model has.

  Attributes:
    vae: a safetensors file with a VAE (alone, or of a whole checkpoint), the folder of a VAE or of
      a whole model, or a name on the Hub.
    tokenizer: a folder with CLIP's vocabulary, for checkpoints of one file.
    prediction_type: "epsilon" or "v_prediction".
  """

  vae: str = ""
  tokenizer: str = ""
  prediction_type: str = ""

  @classmethod
  def of(cls, config: Mapping[str, Any]) -> Choices:
    """Returns the choices in `config.model`."""
    return cls(*(config.get(field) or "" for field in cls._fields))


def is_pipeline(folder: str | os.PathLike[str]) -> bool:
  """Returns whether a folder holds a latent diffusion model (True) or a pixel model (False).

  Raises:
    MissingDataError, ConfigError, BadDataError: the folder holds neither.
  """
  return places.kind_of(folder) == places.LATENT


def load_pipeline(
  folder: str | os.PathLike[str],
  performance: Mapping[str, Any] | None = None,
  *,
  variant: str | None = None,
  deterministic: bool = False,
  image_size: int | tuple[int, int] | None = None,
  choices: Choices = Choices(),
) -> Pipeline:
  """Reads a Stable Diffusion 1.x, 2.x, XL or inpainting model; no pickle is ever opened.

  Args:
    folder: a folder in diffusers' layout, a checkpoint of one safetensors file, a name on the Hub,
      or "tiny_ldm" for the packaged model. Parts other than those above (safety_checker,
      feature_extractor) are ignored.
    performance: settings that change only speed and memory, fields of `models.performance`.
    variant: "fp16" for `*.fp16.safetensors`; None prefers full precision. Parameters become float32
      either way, unless performance.frozen_dtype says otherwise.
    deterministic: whether to encode pictures to the posterior mean and draw nothing.
    image_size: side of the pictures to sample, pixels; None for the U-Net's training size.
    choices: what is taken in place of the model's own.

  Raises:
    MissingDataError: the folder or a part is missing, or only a pickle; says how to get it.
    BadDataError: a file is damaged, a part has another class, or tensors do not fit; names them.
    ConfigError: this library does not have the architecture or a performance setting.
  """
  if not is_pipeline(folder):
    raise ConfigError(f"{folder} holds a model of pixels, not a Stable Diffusion folder")
  folder = resolve(folder)
  found = _open_file(folder, choices) if folder.is_file() else _open_folder(folder, variant)
  if choices.vae:
    found = _with_vae(found, choices.vae)
  configs = {part: _config(part, raw, found.origin[part]) for part, raw in found.configs.items()}
  scheduler = found.scheduler
  if choices.prediction_type:
    scheduler = scheduler | {"prediction_type": choices.prediction_type}
  tokenizer = tokenizer_of(folder, choices) if TEXT in configs else None
  tokenizer_2 = None
  if TEXT_2 in configs:
    tokenizer_2 = _second_tokenizer(folder, choices)
    configs[TEXT_2] = _with_padding(configs[TEXT_2], tokenizer, tokenizer_2, folder)

  model = build_model(
    configs, scheduler, performance, deterministic=deterministic, image_size=image_size
  )
  # Every tensor becomes what is used at once: a whole part never exists twice, nor in two dtypes.
  template = jax.eval_shape(
    functools.partial(frozen, performance=performance), _shapes(tuple(configs.items()))
  )
  params = {
    part: weights.from_torch_names(
      found.tensors[part], template[part], origin=found.origin[part], put=jax.device_put
    )
    for part in configs
  }
  return Pipeline(model, params, tokenizer, configs, scheduler, tokenizer_2)


def tokenizer_of(folder: str | os.PathLike[str], choices: Choices = Choices()) -> Tokenizer:
  """Reads the tokenizer of a model, as `load_pipeline` does, without its weights.

  Raises:
    ConfigError: a tokenizer is chosen for a folder, which has its own.
    MissingDataError: there is none.
    BadDataError: it is damaged.
  """
  place = resolve(folder)
  if place.is_file():
    openclip = single_file.family_of(place) == single_file.SD2
    pad = vocabulary.OPENCLIP_PAD if openclip else EOS
    return vocabulary.find(choices.tokenizer, beside=place.parent, pad=pad)
  if choices.tokenizer:
    raise ConfigError(f"a tokenizer is chosen for checkpoints of one file; {folder} has its own")
  return load_tokenizer(place / "tokenizer")


def _second_tokenizer(place: Path, choices: Choices) -> Tokenizer:
  """Reads XL's second tokenizer, of a folder or for a checkpoint of one file."""
  if not place.is_file():
    return load_tokenizer(place / "tokenizer_2")
  return vocabulary.find(choices.tokenizer, beside=place.parent, pad=vocabulary.OPENCLIP_PAD)


def _with_padding(
  config: CLIPTextConfig, first: Tokenizer | None, second: Tokenizer, folder: Path
) -> CLIPTextConfig:
  """Returns the second encoder's config with its tokenizer's padding; the published ones differ.

  Raises:
    ConfigError: the two tokenizers do not share a vocabulary, so one's ids are not the other's.
  """
  if first is None or (first.vocab, first.merges) != (second.vocab, second.merges):
    raise ConfigError(f"{folder}: tokenizer/ and tokenizer_2/ have different vocabularies")
  return dataclasses.replace(config, pad_token_id=second.token_id(second.special["pad_token"]))


class _Found(NamedTuple):
  """Fields of config.json, tensors, and where they are for messages, by part."""

  configs: dict[str, dict[str, Any]]
  tensors: dict[str, Mapping[str, Any]]
  origin: dict[str, str]
  scheduler: dict[str, Any]
  vae_fields: dict[str, Any]


def _open_folder(folder: Path, variant: str | None) -> _Found:
  parts = [UNET, VAE, *(part for part in (TEXT, TEXT_2) if (folder / part).is_dir())]
  configs, tensors = {}, {}
  for part in parts:
    if not (folder / part / "config.json").is_file():
      raise MissingDataError(f"no {part}/config.json in {folder}. {_HOW_TO_GET}")
    configs[part], tensors[part] = weights.load_pretrained(
      folder / part, class_name=CLASSES[part], variant=variant
    )
  scheduler = weights.load_scheduler_config(folder)
  if scheduler is None:
    raise MissingDataError(f"no scheduler/scheduler_config.json in {folder}. {_HOW_TO_GET}")
  origin = {part: str(folder / part) for part in parts}
  fields = {name: configs[VAE][name] for name in single_file.VAE_FIELDS if name in configs[VAE]}
  return _Found(configs, dict(tensors), origin, scheduler, fields)


def _open_file(file: Path, choices: Choices) -> _Found:
  made = single_file.open_file(file, prediction_type=choices.prediction_type, vae=not choices.vae)
  origin = {part: f"{file} ({part})" for part in made.configs}
  return _Found(made.configs, made.tensors, origin, made.scheduler, made.vae_fields)


def _with_vae(found: _Found, path: str) -> _Found:
  """Replaces the VAE; what a file does not say stays as the model's own VAE has it."""
  raw, tensors, origin = _open_vae(path)
  return found._replace(
    configs=found.configs | {VAE: found.vae_fields | raw},
    tensors=found.tensors | {VAE: tensors},
    origin=found.origin | {VAE: origin},
  )


def _open_vae(path: str) -> tuple[dict[str, Any], Mapping[str, Any], str]:
  place = hub.resolve(path)
  if place.is_file():
    return *single_file.open_vae(place), str(place)
  place = places.find_folder(place, "a VAE")
  place = place / VAE if (place / VAE).is_dir() else place
  return *weights.load_pretrained(place, class_name=CLASSES[VAE]), str(place)


def load_vae(path: str) -> tuple[AutoencoderKL, Params]:
  """Reads a VAE alone.

  Args:
    path: as `Choices.vae`; "tiny_ldm" for that of the packaged model.

  Returns:
    The module and its parameters.

  Raises:
    MissingDataError, BadDataError, ConfigError: as `load_pipeline`.
  """
  raw, tensors, origin = _open_vae(path)
  vae = AutoencoderKL(_config(VAE, raw, origin))
  side = vae.config.downscale
  shape = jax.ShapeDtypeStruct((1, side, side, vae.config.in_channels), jnp.float32)
  template = jax.eval_shape(vae.init, jax.random.key(0), shape)["params"]
  return vae, weights.from_torch_names(tensors, template, origin=origin, put=jax.device_put)


def _config(part: str, raw: Mapping[str, Any], origin: str) -> Any:
  where = Path(origin) / "config.json" if Path(origin).is_dir() else Path(origin)
  try:
    return _CONFIGS[part].from_dict(raw)
  except ConfigError as error:
    raise places.unsupported(where, error) from error
  except TypeError as error:  # For example, a list in place of a number.
    raise BadDataError(f"{where}: {error}") from error


def frozen(params: Params, performance: Mapping[str, Any] | None = None) -> Params:
  """Casts the parts that are not trained to their own dtype, as `models.performance` says."""
  dtype, parts = performance_lib.frozen(performance)
  return cast_parts(params, dtype, parts=parts)


def build_model(
  configs: Mapping[str, Any],
  scheduler: Mapping[str, Any],
  performance: Mapping[str, Any] | None = None,
  *,
  deterministic: bool = False,
  image_size: int | tuple[int, int] | None = None,
) -> DiffusionModel:
  """Builds the model of these configs; arguments as for `Pipeline` and `load_pipeline`.

  Raises:
    BadDataError: this library does not have the noise schedule.
    ConfigError: the parts do not fit together, or a performance setting does not exist.
  """
  options = performance_lib.transformer_options(performance)
  vae = AutoencoderKL(configs[VAE], **performance_lib.vae_options(performance))
  text_options = {name: options[name] for name in ("dtype", "conv_method", "remat")}
  two = TEXT_2 in configs
  text = CLIPText(configs[TEXT], **text_options, penultimate=two) if TEXT in configs else None
  model = latent_diffusion(
    UNet2DCondition(configs[UNET], **options),
    vae,
    text,
    weights.schedule_from_config(scheduler),
    image_size=image_size or configs[UNET].sample_size * configs[VAE].downscale,
    text_2=CLIPTextProjected(configs[TEXT_2], **text_options) if two else None,
    deterministic=deterministic,
    vae_slices=performance_lib.vae_slices(performance),
  )
  return performance_lib.precise(model, performance)


@functools.cache  # Tracing takes seconds, and the shapes depend only on the configs.
def _shapes(configs: tuple[tuple[str, Any], ...]) -> Params:
  return jax.eval_shape(build_model(dict(configs), {}).init, jax.random.key(0))


def save_pipeline_folder(
  folder: str | os.PathLike[str], pipeline: Pipeline, params: Params | None = None
) -> None:
  """Writes a folder for diffusers' `StableDiffusionPipeline` (or XL's) and `load_pipeline`.

  model_index.json is written last, so a folder without it is unfinished. Tensors are float32.

  Args:
    folder: the folder, created if needed.
    pipeline: the model; its configs, scheduler and tokenizer are written.
    params: the parameters; None for the pipeline's own.

  Raises:
    OutputError: the folder cannot be written, or holds a sharded model.
  """
  folder = Path(folder)
  params = pipeline.params if params is None else params
  with files.output_errors(folder):
    (folder / "model_index.json").unlink(missing_ok=True)
  for part, config in pipeline.configs.items():
    fields = config.to_dict()
    if "architectures" in fields:
      fields["architectures"] = [CLASSES[part]]
    weights.save_pretrained(folder / part, fields, params[part], class_name=CLASSES[part])
  scheduler = {"_class_name": "DDIMScheduler", **pipeline.scheduler}
  files.write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
  if pipeline.tokenizer is not None:
    pipeline.tokenizer.save(folder / "tokenizer")
  if pipeline.tokenizer_2 is not None:
    pipeline.tokenizer_2.save(folder / "tokenizer_2")
  files.write_json(folder / "model_index.json", _index(pipeline, scheduler["_class_name"]))


def _index(pipeline: Pipeline, scheduler_class: str) -> dict[str, Any]:
  inpainting = pipeline.configs[UNET].in_channels > pipeline.configs[VAE].latent_channels
  two = TEXT_2 in pipeline.configs
  kind = f"StableDiffusion{'XL' if two else ''}{'Inpaint' if inpainting else ''}Pipeline"
  nothing = [None, None]
  index: dict[str, Any] = {
    "_class_name": kind,
    "_diffusers_version": _DIFFUSERS_VERSION,
    "scheduler": ["diffusers", scheduler_class],
    "text_encoder": nothing,
    "tokenizer": nothing,
    UNET: ["diffusers", CLASSES[UNET]],
    VAE: ["diffusers", CLASSES[VAE]],
    "feature_extractor": nothing,
    "image_encoder": nothing,
    "safety_checker": nothing,
    "requires_safety_checker": False,
  }
  if TEXT in pipeline.configs:
    index[TEXT] = ["transformers", CLASSES[TEXT]]
  if pipeline.tokenizer is not None:
    index["tokenizer"] = ["transformers", "CLIPTokenizer"]
  if two:
    index[TEXT_2] = ["transformers", CLASSES[TEXT_2]]
    index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
    # What the published folder says: no negative prompt at all is zeros, not the empty prompt.
    index["force_zeros_for_empty_prompt"] = True
    for name in ("safety_checker", "requires_safety_checker"):
      del index[name]
  return index
