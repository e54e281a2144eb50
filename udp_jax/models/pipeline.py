"""Reads and writes the folders of diffusers' `StableDiffusionPipeline`, and of XL's.

model_index.json                            class of each part
unet/ vae/ text_encoder/                    config.json and safetensors (whole, sharded, fp16)
tokenizer/                                  vocab.json, merges.txt, tokenizer_config.json, ...
text_encoder_2/ tokenizer_2/                XL alone: the second text encoder
scheduler/scheduler_config.json             noise schedule
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from udp_jax.errors import BadDataError, ConfigError, MissingDataError
from udp_jax.models import performance as performance_lib
from udp_jax.models import places, weights
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.models.clip_text import CLIPText, CLIPTextConfig, CLIPTextProjected
from udp_jax.models.latent import TEXT, TEXT_2, UNET, VAE, cast_parts, latent_diffusion
from udp_jax.models.places import resolve
from udp_jax.models.sd_unet import UNet2DCondition, UNet2DConditionConfig
from udp_jax.models.sd_vae import AutoencoderKL, AutoencoderKLConfig
from udp_jax.models.tokenizer import Tokenizer, load_tokenizer
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
) -> Pipeline:
  """Reads a Stable Diffusion 1.x, 2.x, XL or inpainting folder, without network or pickles.

  Args:
    folder: a folder in diffusers' layout, or "tiny_ldm" for the packaged model. Parts other than
      those above (safety_checker, feature_extractor) are ignored.
    performance: settings that change only speed and memory, fields of `models.performance`.
    variant: "fp16" for `*.fp16.safetensors`; None prefers full precision. Parameters become float32
      either way, unless performance.frozen_dtype says otherwise.
    deterministic: whether to encode pictures to the posterior mean and draw nothing.
    image_size: side of the pictures to sample, pixels; None for the U-Net's training size.

  Raises:
    MissingDataError: the folder or a part is missing, or only a pickle; says how to get it.
    BadDataError: a file is damaged, a part has another class, or tensors do not fit; names them.
    ConfigError: this library does not have the architecture or a performance setting.
  """
  if not is_pipeline(folder):
    raise ConfigError(f"{folder} holds a model of pixels, not a Stable Diffusion folder")
  folder = resolve(folder)
  parts = [UNET, VAE, *(part for part in (TEXT, TEXT_2) if (folder / part).is_dir())]
  configs, tensors = {}, {}
  for part in parts:
    if not (folder / part / "config.json").is_file():
      raise MissingDataError(f"no {part}/config.json in {folder}. {_HOW_TO_GET}")
    raw, tensors[part] = weights.load_pretrained(
      folder / part, class_name=CLASSES[part], variant=variant
    )
    try:
      configs[part] = _CONFIGS[part].from_dict(raw)
    except ConfigError as error:
      raise places.unsupported(folder / part / "config.json", error) from error
    except TypeError as error:  # For example, a list in place of a number.
      raise BadDataError(f"{folder / part / 'config.json'}: {error}") from error
  scheduler = weights.load_scheduler_config(folder)
  if scheduler is None:
    raise MissingDataError(f"no scheduler/scheduler_config.json in {folder}. {_HOW_TO_GET}")
  tokenizer = load_tokenizer(folder / "tokenizer") if TEXT in parts else None
  tokenizer_2 = None
  if TEXT_2 in parts:
    tokenizer_2 = load_tokenizer(folder / "tokenizer_2")
    configs[TEXT_2] = _with_padding(configs[TEXT_2], tokenizer, tokenizer_2, folder)

  model = build_model(
    configs, scheduler, performance, deterministic=deterministic, image_size=image_size
  )
  template = _shapes(tuple(configs.items()))
  params = {
    part: weights.from_torch_names(tensors.pop(part), template[part], origin=str(folder / part))
    for part in parts
  }
  params = frozen(params, performance)
  return Pipeline(model, jax.device_put(params), tokenizer, configs, scheduler, tokenizer_2)


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
