"""Fine-tunes a latent diffusion model on captioned pictures, from folders to folders.

workdir/config.json       settings of the run; a second run with another config is refused
workdir/class_pictures/   sampled from the model before training (DreamBooth)
workdir/checkpoints/, metrics.jsonl
workdir/adapter/          the small file that PyTorch diffusers loads (LoRA, textual inversion), or
workdir/model/            the whole model, a StableDiffusionPipeline folder
workdir/samples/          pictures sampled for `config.samples.prompts`
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from udp_jax import threats
from udp_jax.data import sources
from udp_jax.data.image_set import ImageSet
from udp_jax.errors import ConfigError
from udp_jax.models import factory, latent, pipeline, prompts, sharded
from udp_jax.models.base import Params, embed_prompts
from udp_jax.models.context import Model
from udp_jax.models.tokenizer import Tokenizer
from udp_jax.runtime import processes
from udp_jax.stages import sample, train
from udp_jax.studies import settings
from udp_jax.studies.build import Study
from udp_jax.threats.base import Threat

CONCEPT = "textual_inversion"


class FineTuned(NamedTuple):
  """The result of fine-tuning.

  Attributes:
    saved: the adapter's file, or the model's folder.
    params: parameters of the whole model, theta merged in.
    threat: the threat that samples with them.
    tokenizer: tokenizer that includes the learned token, if there is one.
    samples: uint8 (N, H, W, 3), or None.
  """

  saved: Path
  params: Params
  threat: Threat
  tokenizer: Tokenizer
  samples: np.ndarray | None


def load_model(config: Any) -> Model:
  """Loads the latent model to fine-tune.

  Raises:
    ConfigError: `config.model.path` is empty, or holds a model without text.
    MissingDataError, BadDataError: as `pipeline.load_pipeline`.
  """
  if not config.model.path:
    raise ConfigError(
      "fine-tuning starts from a model: give --model=FOLDER in Stable Diffusion's layout, or "
      "--model=tiny_ldm for the one in the package"
    )
  # Float32, because these parameters are saved; `_frozen` makes the copy that training uses.
  settings = config.performance.to_dict() | {"frozen_dtype": ""}
  opened = factory.open_model(config.model, settings)
  if opened.tokenizer is None:
    raise ConfigError(f"{config.model.path} is no text-to-image model: it has no text encoder")
  return opened


def fine_tune(study: Study) -> FineTuned:
  """Trains on `config.data`, saves and samples; results that are on disk are not made again.

  Args:
    study: config (experiments/configs/finetuning.py), folder, devices, and the model from
      `load_model`, whose tokenizer gets the token to be learned.

  Raises:
    UserError, Preempted: as the stages.
  """
  config, workdir, model = study.config, study.workdir, study.model
  assert model.tokenizer is not None
  options, sentences = _options(config, model)
  split = sharded.split_weights(model.model, study.mesh)
  trainer = threats.build(config.threat.name, split, options)
  _check(config, trainer)
  sampler = trainer
  if split is not model.model:
    sampler = threats.build(config.threat.name, model.model, options)
  pictures = _load(config, config.data.source, model)
  captions = (
    prompts.captions_of(pictures, config.data.source, config.data.prompt)
    if sentences is None
    else sentences
  )
  digest = hashlib.sha256("\0".join(captions).encode()).hexdigest()
  config = settings.frozen(config, {"data.captions_sha256": digest})
  study = study._replace(config=config)
  settings.check(config, workdir, pictures)

  params = _frozen(config, trainer, model.params)
  cond = model.tokenizer(captions)
  if sentences is not None:  # Every picture has them all; each step draws one.
    cond = np.broadcast_to(cond, (len(pictures.images), *cond.shape))
  elif not trainer.needs_token_ids:
    cond = embed_prompts(model.model, params, cond)
  prior = _prior(study, trainer, sampler, params)
  every = config.checkpoint.every_steps
  run = study.run("train", workdir, f"train {config.threat.name}", checkpoint_every=every)
  data = train.training_batches(pictures.images, cond, config.global_batch_size, prior)
  theta = train.train(trainer, data, params, run)
  trained = trainer.trainable.merge(theta, model.params)
  saved = processes.from_main(lambda: _save(workdir, model, trainer, theta, trained), "save")
  samples = None
  if config.samples.num_images:
    texts = [*config.samples.prompts] or captions
    asked = _Asked(texts, config.samples.num_images)
    samples = _sample(study, workdir / "samples", sampler, trained, asked)
  return FineTuned(saved, trained, sampler, model.tokenizer, samples)


def _options(config: Any, model: Model) -> tuple[dict[str, Any], list[str] | None]:
  """Returns the threat's options, and the sentences about a token to be learned."""
  assert model.pipeline is not None and model.tokenizer is not None
  options = dict(config.threat.options) | {"scheduler": model.pipeline.scheduler}
  if config.threat.name != CONCEPT:
    return options, None
  if config.data.prompt:
    raise ConfigError("textual inversion has sentences of its own: leave --prompt out")
  concept = config.concept
  sentences = prompts.templates(concept.kind, concept.token, concept.num_vectors)
  ids, start = prompts.learn_token(
    model.tokenizer, concept.token, concept.init_word, concept.num_vectors
  )
  return options | {"token": concept.token, "token_ids": ids, "init_from": start}, sentences


def _check(config: Any, trainer: Threat) -> None:
  """Raises ConfigError now for settings that would otherwise fail only after other work."""
  if not trainer.prior_weight:
    return
  if not config.prior.prompt:
    raise ConfigError(
      "DreamBooth preserves a class: give --class_prompt, such as 'a photo of a dog' (or "
      "--config.threat.options.prior_weight=0)"
    )
  if config.global_batch_size % 2:
    raise ConfigError("half of a DreamBooth batch are class pictures: make global_batch_size even")


def _frozen(config: Any, trainer: Threat, params: Params) -> Params:
  """Casts the parameters that are not trained to `config.performance.frozen_dtype`."""
  parts = [latent.VAE]
  if not config.threat.options.get("train_text_encoder"):
    parts.append(latent.TEXT)
  if trainer.save is not None:  # An adapter: the U-Net is frozen too.
    parts.append(latent.UNET)
  return pipeline.frozen(params, config.performance.to_dict() | {"frozen_parts": tuple(parts)})


def _load(config: Any, source: str, model: Model) -> ImageSet:
  height, width, _ = model.model.image_shape
  if height != width:
    raise ConfigError(f"pictures are cropped to squares, and the model is for {width}x{height}")
  data = config.data
  return sources.load(
    source,
    image_size=height,
    limit=data.limit or None,
    seed=config.seed,
    strict=data.strict,
    classes=tuple(data.classes) or None,
  )


class _Asked(NamedTuple):
  """Prompts, used in turn, and how many pictures to sample for them."""

  texts: list[str]
  num_samples: int


def _prior(
  study: Study, trainer: Threat, sampler: Threat, params: Params
) -> train.ClassPictures | None:
  """Returns DreamBooth's class pictures, read or sampled; None for other threats."""
  if not trainer.prior_weight:
    return None
  prior, model = study.config.prior, study.model
  if prior.source:
    images = _load(study.config, prior.source, model).images
  else:
    asked = _Asked([prior.prompt], prior.num_images)
    images = _sample(study, study.workdir / "class_pictures", sampler, params, asked)
  assert model.tokenizer is not None
  cond = model.tokenizer([prior.prompt])
  if not trainer.needs_token_ids:
    cond = embed_prompts(model.model, params, cond)
  return train.ClassPictures(images, np.repeat(cond, len(images), axis=0), trainer.prior_weight)


def _save(workdir: Path, model: Model, threat: Threat, theta: Any, trained: Params) -> Path:
  if threat.save is not None:
    return threat.save(workdir / "adapter", theta)
  if not (workdir / "model" / "model_index.json").exists():
    assert model.pipeline is not None
    pipeline.save_pipeline_folder(workdir / "model", model.pipeline, trained)
  return workdir / "model"


def _sample(
  study: Study, folder: Path, threat: Threat, params: Params, asked: _Asked
) -> np.ndarray:
  """Samples pictures for the prompts, in turn."""
  config, model, texts = study.config, study.model, asked.texts
  assert model.tokenizer is not None
  if config.threat.name == CONCEPT:
    concept = config.concept
    texts = [prompts.spell_out(t, concept.token, concept.num_vectors) for t in texts]
  cond, uncond = (
    embed_prompts(model.model, params, model.tokenizer(some)) for some in (texts, [""])
  )
  record = {"method": "samples", "prompts": texts, "seed": config.seed}
  return sample.sample(
    threat.sample,
    params,
    folder,
    study.run(folder.name, folder, folder.name.replace("_", " ")),
    num_samples=asked.num_samples,
    asked=sample.Asked(cond, uncond, record),
  )
