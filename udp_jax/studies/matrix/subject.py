"""The model of a matrix: protections attack it, purifiers and threats run it.

With `config.protection_model.path`, protections attack another one: does what they do transfer?

Purifiers that denoise with a prior (`purifiers.PRIORS`) may have another model.

A latent model comes from a Stable Diffusion folder (or "tiny_ldm", the one in the package), a pixel
model from a DDPM folder. The rest of the matrix treats both alike; a pixel model has no prompts.
"""

from __future__ import annotations

from typing import Any

from ml_collections import FrozenConfigDict

from udp_jax.data.image_set import ImageSet
from udp_jax.errors import ConfigError
from udp_jax.models import factory, pipeline
from udp_jax.models.context import Model
from udp_jax.studies import settings

_LABEL = "{label}"


def load(config: Any) -> tuple[Model, FrozenConfigDict]:
  """Loads the model of `config.model.path`; also returns the config with the model's own settings.

  Args:
    config: settings with `model.path`, `model.image_size` (0 for the model's own) and
      `performance`.

  Raises:
    ConfigError: the path is empty, or a setting does not fit.
    MissingDataError, BadDataError: the folder is missing or damaged.
  """
  path = config.model.path
  if not path:
    raise ConfigError(
      "the matrix needs a trained model: --config.model.path=FOLDER (Stable Diffusion or DDPM in "
      "diffusers' layout), or tiny_ldm for the one in the package"
    )
  model = factory.open_model(config.model, config.performance)
  found = model.pipeline
  if found is None:
    return model._replace(measuring=model.model), settings.frozen(config)
  measuring = pipeline.build_model(
    found.configs,
    found.scheduler,
    config.performance,
    deterministic=True,
    image_size=config.model.image_size or None,
  )
  changes = {} if model.uncond_ids is None else {"model.uncond_ids": model.uncond_ids}
  return model._replace(measuring=measuring), settings.frozen(config, changes)


def load_prior(config: Any) -> Model | None:
  """Loads the model of `config.purifier_model.path`; None if the attacked model purifies.

  Raises:
    ConfigError: the model is not supported.
    MissingDataError, BadDataError: the folder is missing or damaged.
  """
  if not path_of_prior(config):
    return None
  return factory.open_model(config.purifier_model, config.performance)


def path_of_prior(config: Any) -> str:
  """Returns `config.purifier_model.path`; "" also for configs of before there was such a field."""
  return str(config.purifier_model.path) if "purifier_model" in config else ""


def texts_of(prompt: str, pictures: ImageSet) -> list[str]:
  """Returns one prompt for each picture; "{label}" stands for the name of its class.

  Raises:
    ConfigError: the prompt names a class, but the pictures have no classes.
  """
  if _LABEL not in prompt:
    return [prompt] * len(pictures.images)
  names = pictures.origin.get("classes")
  if pictures.labels is None or not names:
    raise ConfigError(f"prompt {prompt!r} names classes, but the pictures have none")
  return [prompt.replace(_LABEL, names[label]) for label in pictures.labels]


def texts_of_classes(prompt: str, pictures: ImageSet) -> list[str]:
  """Returns one prompt for each class, by label; empty without classes or "{label}"."""
  names = pictures.origin.get("classes") or ()
  return [prompt.replace(_LABEL, name) for name in names] if asks_for_labels(prompt) else []


def asks_for_labels(prompt: str) -> bool:
  """Whether a prompt differs from class to class."""
  return _LABEL in prompt
