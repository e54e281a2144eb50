"""The model that everybody in the matrix uses: protections attack it, purifiers and threats run it.

A latent model comes from a Stable Diffusion folder (or "tiny_ldm", the one in the package), a pixel
model from a DDPM folder. Both are handled alike from here on; a pixel model has no prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from udp_jax import prompts
from udp_jax.data.image_set import ImageSet
from udp_jax.errors import ConfigError
from udp_jax.models import factory, pipeline
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.models.pipeline import Pipeline

_LABEL = "{label}"


class Subject(NamedTuple):
  """A trained model and what belongs to it.

  Attributes:
    model: as protections and threats see it.
    params: its parameters.
    measuring: the same model, encoding to the mean of the posterior.
    pipeline: what its folder says; None for a pixel model.
  """

  model: DiffusionModel
  params: Params
  measuring: DiffusionModel
  pipeline: Pipeline | None

  @property
  def is_latent(self) -> bool:
    """Whether there is a VAE between pictures and x0."""
    return self.pipeline is not None

  @property
  def for_options(self) -> dict[str, Any]:
    """What methods may ask for by the name of a keyword, beside what a config can say."""
    if self.pipeline is None:
      return {}
    unet, vae = self.pipeline.configs[pipeline.UNET], self.pipeline.configs[pipeline.VAE]
    return {
      "scheduler": self.pipeline.scheduler,
      "inpainting_unet": unet.in_channels > vae.latent_channels,
    }

  def token_ids(self, texts: Sequence[str]) -> np.ndarray | None:
    """Token ids (N, L) of prompts; None for a model without prompts."""
    if self.pipeline is None or self.pipeline.tokenizer is None:
      return None
    return self.pipeline.tokenizer(list(texts))

  def embeddings(self, texts: Sequence[str]) -> np.ndarray | None:
    """Embeddings (N, L, D) of prompts; None for a model without prompts."""
    ids = self.token_ids(texts)
    return None if ids is None else prompts.embed(self.model, self.params, ids)


def load(config: Any) -> Subject:
  """The model of `config.model.path`.

  Args:
    config: with `model.path`, `model.image_size` (0 for the model's own) and `performance`.

  Raises:
    ConfigError: no path, or a setting that does not fit.
    MissingDataError, BadDataError: the folder is not there, or damaged.
  """
  path = config.model.path
  if not path:
    raise ConfigError(
      "the matrix needs a trained model: --config.model.path=FOLDER (Stable Diffusion or DDPM in "
      "diffusers' layout), or tiny_ldm for the one in the package"
    )
  if not pipeline.is_pipeline(path):
    model, _, params = factory.build(config.model, config.performance)
    return Subject(model, params, model, None)
  size = config.model.image_size or None
  found = pipeline.load_pipeline(path, config.performance, image_size=size)
  measuring = pipeline.build_model(
    found.configs, found.scheduler, config.performance, deterministic=True, image_size=size
  )
  if found.tokenizer is not None:
    with config.unlocked():
      config.model.uncond_ids = tuple(found.tokenizer([""])[0].tolist())
  return Subject(found.model, found.params, measuring, found)


def texts_of(prompt: str, pictures: ImageSet) -> list[str]:
  """One prompt a picture; "{label}" stands for the name of its class.

  Raises:
    ConfigError: the prompt asks for classes that the pictures do not have.
  """
  if _LABEL not in prompt:
    return [prompt] * len(pictures.images)
  names = pictures.origin.get("classes")
  if pictures.labels is None or not names:
    raise ConfigError(f"prompt {prompt!r} names classes, but the pictures have none")
  return [prompt.replace(_LABEL, names[label]) for label in pictures.labels]


def texts_of_classes(prompt: str, pictures: ImageSet) -> list[str]:
  """One prompt a class, by label; none where there are no classes or the prompt names none."""
  names = pictures.origin.get("classes") or ()
  return [prompt.replace(_LABEL, name) for name in names] if asks_for_labels(prompt) else []


def asks_for_labels(prompt: str) -> bool:
  """Whether a prompt differs from class to class."""
  return _LABEL in prompt
