"""Fine-tuning a latent diffusion model on captioned pictures, from folders to folders.

workdir/config.json       what is run; a second run with another config is refused
workdir/class_pictures/   made by the model before it is trained (DreamBooth)
workdir/checkpoints/, metrics.jsonl
workdir/adapter/          the small file that PyTorch diffusers loads (LoRA, textual inversion), or
workdir/model/            the whole model, a StableDiffusionPipeline folder
workdir/samples/          what it draws for `config.samples.prompts`
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from udp_jax import placement, processes, prompts, run_config, stages, study, threats, training
from udp_jax.data import sources
from udp_jax.data.image_set import ImageSet
from udp_jax.errors import ConfigError
from udp_jax.models import factory, latent, pipeline
from udp_jax.models.base import Params
from udp_jax.models.pipeline import Pipeline
from udp_jax.models.tokenizer import Tokenizer
from udp_jax.randomness import stream
from udp_jax.threats.base import Threat
from udp_jax.threats.dreambooth import batches_with_prior
from udp_jax.training import Batch

CONCEPT = "textual_inversion"


class FineTuned(NamedTuple):
  """What fine-tuning made.

  Attributes:
    saved: the adapter's file, or the model's folder.
    params: of the whole model, theta merged in.
    threat: which samples with them.
    tokenizer: which knows a learned token.
    samples: uint8 (N, H, W, 3), or None.
  """

  saved: Path
  params: Params
  threat: Threat
  tokenizer: Tokenizer
  samples: np.ndarray | None


def load_model(config: Any) -> Pipeline:
  """The latent model that is fine-tuned.

  Raises:
    ConfigError: `config.model.path` is empty, or holds a model without text.
    MissingDataError, BadDataError: see `pipeline.load_pipeline`.
  """
  if not config.model.path:
    raise ConfigError(
      "fine-tuning starts from a model: give --model=FOLDER in Stable Diffusion's layout, or "
      "--model=tiny_ldm for the one in the package"
    )
  # Float32, for what is saved; `_frozen` makes the copy that training holds.
  settings = config.performance.to_dict() | {"frozen_dtype": ""}
  opened = factory.open_model(config.model, settings).pipeline
  if opened is None or opened.tokenizer is None:
    raise ConfigError(f"{config.model.path} is no text-to-image model: it has no text encoder")
  return opened


def fine_tune(config: Any, workdir: Path, opened: Pipeline, *, progress: bool = True) -> FineTuned:
  """Trains on `config.data`, saves, and samples; what is on disk is not made again.

  Args:
    config: see experiments/configs/finetuning.py.
    workdir: of this run.
    opened: of `load_model`. Its tokenizer gets the token that is learned.
    progress: show bars.

  Raises:
    UserError, loop.Preempted: see the stages.
  """
  assert opened.tokenizer is not None
  mesh = study.make_mesh(config)
  options, sentences = _options(config, opened)
  split = placement.split_weights(opened.model, mesh)
  trainer = threats.build(config.threat.name, split, options)
  _check(config, trainer)
  sampler = trainer
  if split is not opened.model:
    sampler = threats.build(config.threat.name, opened.model, options)
  pictures = _load(config, config.data.source, opened)
  captions = (
    prompts.captions_of(pictures, config.data.source, config.data.prompt)
    if sentences is None
    else sentences
  )
  with config.unlocked():
    config.data.captions_sha256 = hashlib.sha256("\0".join(captions).encode()).hexdigest()
  run_config.check(config, workdir, pictures)

  params = _frozen(config, trainer, opened.params)
  key = jax.random.key(config.seed)
  cond = opened.tokenizer(captions)
  if sentences is not None:  # Every picture has them all, and draws one at every step.
    cond = np.broadcast_to(cond, (len(pictures.images), *cond.shape))
  elif not trainer.needs_token_ids:
    cond = prompts.embed(opened.model, params, cond)
  data = _batches(config, workdir, opened, trainer, sampler, params, pictures, cond, progress)
  theta = stages.train_stage(
    trainer,
    data,
    key=stream(key, "train"),
    params=params,
    mesh=mesh,
    global_batch_size=config.global_batch_size,
    scratch_folder=workdir,
    checkpoint_every=config.checkpoint.every_steps,
    steps_per_call=config.performance.steps_per_call,
    label=f"train {config.threat.name}",
    progress=progress,
  )
  trained = trainer.trainable.merge(theta, opened.params)
  saved = processes.from_main(lambda: _save(workdir, opened, trainer, theta, trained), "save")
  samples = None
  if config.samples.num_images:
    samples = _sample(
      config,
      workdir / "samples",
      opened,
      sampler,
      trained,
      [*config.samples.prompts] or captions,
      num_samples=config.samples.num_images,
      progress=progress,
    )
  return FineTuned(saved, trained, sampler, opened.tokenizer, samples)


def _options(config: Any, opened: Pipeline) -> tuple[dict[str, Any], list[str] | None]:
  """The threat's options, and the sentences about a token that is learned."""
  options = dict(config.threat.options) | {"scheduler": opened.scheduler}
  if config.threat.name != CONCEPT:
    return options, None
  if config.data.prompt:
    raise ConfigError("textual inversion has sentences of its own: leave --prompt out")
  concept = config.concept
  sentences = prompts.templates(concept.kind, concept.token, concept.num_vectors)
  assert opened.tokenizer is not None
  ids, start = prompts.learn_token(
    opened.tokenizer, concept.token, concept.init_word, concept.num_vectors
  )
  return options | {"token": concept.token, "token_ids": ids, "init_from": start}, sentences


def _check(config: Any, trainer: Threat) -> None:
  """Raises ConfigError for what would otherwise show only after work was done."""
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
  """`params` with what is not trained in `config.performance.frozen_dtype`."""
  parts = [latent.VAE]
  if not config.threat.options.get("train_text_encoder"):
    parts.append(latent.TEXT)
  if trainer.save is not None:  # An adapter: the U-Net is frozen too.
    parts.append(latent.UNET)
  return pipeline.frozen(params, config.performance.to_dict() | {"frozen_parts": tuple(parts)})


def _load(config: Any, source: str, opened: Pipeline) -> ImageSet:
  height, width, _ = opened.model.image_shape
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


def _batches(
  config: Any,
  workdir: Path,
  opened: Pipeline,
  trainer: Threat,
  sampler: Threat,
  params: Params,
  pictures: ImageSet,
  cond: np.ndarray,
  progress: bool,
) -> Batch:
  if not trainer.prior_weight:
    return training.make_batches(pictures.images, config.global_batch_size, cond=cond)
  prior = config.prior
  if prior.source:
    images = _load(config, prior.source, opened).images
  else:
    images = _sample(
      config,
      workdir / "class_pictures",
      opened,
      sampler,
      params,
      [prior.prompt],
      num_samples=prior.num_images,
      progress=progress,
    )
  assert opened.tokenizer is not None
  prior_cond = opened.tokenizer([prior.prompt])
  if not trainer.needs_token_ids:
    prior_cond = prompts.embed(opened.model, params, prior_cond)
  return batches_with_prior(
    pictures.images,
    cond,
    images,
    np.repeat(prior_cond, len(images), axis=0),
    prior_weight=trainer.prior_weight,
    global_batch_size=config.global_batch_size,
  )


def _save(workdir: Path, opened: Pipeline, threat: Threat, theta: Any, trained: Params) -> Path:
  if threat.save is not None:
    return threat.save(workdir / "adapter", theta)
  if not (workdir / "model" / "model_index.json").exists():
    pipeline.save_pipeline_folder(workdir / "model", opened, trained)
  return workdir / "model"


def _sample(
  config: Any,
  folder: Path,
  opened: Pipeline,
  threat: Threat,
  params: Params,
  texts: list[str],
  *,
  num_samples: int,
  progress: bool,
) -> np.ndarray:
  """Pictures of `texts`, in turn."""
  assert opened.tokenizer is not None
  if config.threat.name == CONCEPT:
    concept = config.concept
    texts = [prompts.spell_out(t, concept.token, concept.num_vectors) for t in texts]
  cond, uncond = (
    prompts.embed(opened.model, params, opened.tokenizer(some)) for some in (texts, [""])
  )
  return stages.sample_stage(
    threat,
    params,
    folder,
    key=stream(jax.random.key(config.seed), folder.name),
    num_samples=num_samples,
    per_device_batch_size=config.performance.sample_batch_size,
    cond=cond,
    uncond=uncond,
    record={"method": "samples", "prompts": texts, "seed": config.seed},
    label=folder.name.replace("_", " "),
    progress=progress,
  )
