"""Builds models from a config or from a diffusers folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from udp_jax.errors import ConfigError
from udp_jax.models import adm, galaxies, latent, places, published, weights
from udp_jax.models import performance as performance_lib
from udp_jax.models import pipeline as pipeline_lib
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.models.context import Model
from udp_jax.models.ddpm_unet import UNet2D, UNet2DConfig
from udp_jax.models.pixel import pixel_diffusion
from udp_jax.ops import schedules

SCHEDULES: dict[str, Callable[..., schedules.NoiseSchedule]] = {
  "linear": schedules.linear,
  "scaled_linear": schedules.scaled_linear,
  "cosine": schedules.cosine,
}


def open_model(config: Any, performance: Any) -> Model:
  """Opens the model of a config: Stable Diffusion, "tiny_ldm", or as in `build`.

  Args:
    config: `config.model`, as for `build`. For Stable Diffusion `path` is what
      `pipeline.load_pipeline` reads, and `vae`, `tokenizer` and `prediction_type`, if there, are
      `pipeline.Choices`.
    performance: `config.performance`.

  "galaxygrad:hsc64" and the like are the score models of `models.galaxies`, in float32.

  Raises:
    ConfigError, MissingDataError, BadDataError: the folder is missing, damaged or unsupported.
  """
  if config.get("architecture") and not config.path:
    raise ConfigError(
      "config.model.path is needed: the folder of a Stable Diffusion model, as diffusers writes "
      "it, or tiny_ldm for the small one in the package"
    )
  choices = pipeline_lib.Choices.of(config)
  if config.path and config.path.startswith(places.GALAXIES):
    _refuse_choices(choices)
    found, params = galaxies.load(config.path)
    return Model(performance_lib.precise(found, performance), params)
  if config.path and pipeline_lib.is_pipeline(config.path):
    size = config.get("image_size") or None
    opened = pipeline_lib.load_pipeline(config.path, performance, image_size=size, choices=choices)
    return Model(opened.model, opened.params, pipeline=opened)
  _refuse_choices(choices)
  model, unet, params = build(config, performance)
  return Model(model, params, unet)


def abstract_model(config: Any, performance: Any) -> tuple[DiffusionModel, Params]:
  """Returns a config's model and the shapes and dtypes of its parameters, without weights.

  Args:
    config: `config.model`, as for `build`; `architecture` may name one of `models.published`, for
      Stable Diffusion without a folder.
    performance: `config.performance`.

  Raises:
    ConfigError, MissingDataError, BadDataError: the folder is missing, damaged or unsupported.
  """
  name = config.get("architecture")
  if name and not config.path:
    configs, scheduler = published.architecture(name)
    size = config.get("image_size") or None
    model = pipeline_lib.build_model(configs, scheduler, performance, image_size=size)
  else:
    model = open_model(config, performance).model
  params = jax.eval_shape(model.init, jax.random.key(0))
  if isinstance(params, dict) and latent.VAE in params:
    params = jax.eval_shape(partial(pipeline_lib.frozen, performance=performance), params)
  return model, params


def build(config: Any, performance: Any) -> tuple[DiffusionModel, UNet2DConfig, Params | None]:
  """Builds a config's model; returns its parameters too if they are loaded from a folder.

  Args:
    config: `config.model`: `path` (a diffusers folder; "" for a fresh model), `unet` (fields of
      `UNet2DConfig` for a fresh model), `schedule` ("linear", ...), `num_train_timesteps`.
    performance: `config.performance`: `dtype`, `precision`, `conv_method`, `attention` ("" means
      the backend's default), `remat`.

  Raises:
    ConfigError: a schedule, dtype, precision, convolution method, attention or U-Net field is
      unknown.
    MissingDataError: the folder or one of its files does not exist.
    BadDataError: tensors do not fit.
  """
  options = performance_lib.module_options(performance)
  if config.path:
    model, unet_config, params = load(config.path, **options)
    return performance_lib.precise(model, performance), unet_config, params
  if config.schedule not in SCHEDULES:
    raise ConfigError(f"unknown schedule {config.schedule!r}; known: {', '.join(SCHEDULES)}")
  try:
    unet_config = UNet2DConfig(**{k: _tuple(v) for k, v in dict(config.unet).items()})
  except TypeError as error:
    raise ConfigError(f"config.model.unet: {error}") from error
  schedule = SCHEDULES[config.schedule](config.num_train_timesteps)
  model = pixel_diffusion(UNet2D(unet_config, **options), schedule)
  return performance_lib.precise(model, performance), unet_config, None


def load(folder: str | os.PathLike, **options: Any) -> tuple[DiffusionModel, UNet2DConfig, Params]:
  """Loads a `UNet2DModel`, `DDPMPipeline` or ADM folder; `options` go to `UNet2D`.

  A folder without a scheduler uses the linear schedule of Ho et al.

  Raises:
    MissingDataError: the folder or one of its files does not exist.
    BadDataError: tensors do not fit.
  """
  if os.fspath(folder).startswith(places.GALAXIES):
    raise ConfigError(
      f"{folder} has no U-Net: it is attacked and purifies, but is not trained here"
    )
  if places.kind_of(folder) != places.PIXEL:
    raise ConfigError(f"{folder} holds a latent diffusion model: a model of pixels is needed here")
  folder = places.resolve(folder)
  tensors: Mapping[str, np.ndarray]
  raw, tensors = weights.load_pretrained(folder)
  scheduler = weights.load_scheduler_config(folder) or {}
  try:
    if raw.get("_class_name") == adm.CLASS:
      tensors = adm.renamed(tensors, raw)
      unet_config, schedule = adm.unet_config(raw), adm.schedule(raw)
    else:
      unet_config = UNet2DConfig.from_dict(raw)
      schedule = weights.schedule_from_config(scheduler) if scheduler else schedules.linear()
    if scheduler.get("variance_type") == "learned":
      raise ConfigError("variance_type='learned' is not supported, only 'learned_range'")
  except ConfigError as error:
    raise places.unsupported(folder, error) from error
  model = pixel_diffusion(UNet2D(unet_config, **options), schedule)
  template = jax.eval_shape(model.init, jax.random.key(0))
  # `jnp.asarray` would compile a program for every shape.
  params = weights.from_torch_names(tensors, template, put=jax.device_put)
  return model, unet_config, params


def save(
  folder: str | os.PathLike, model: DiffusionModel, config: UNet2DConfig, params: Params
) -> None:
  """Writes a folder that `load` and diffusers' `DDPMPipeline.from_pretrained` open."""
  scheduler = weights.scheduler_config(model.schedule)
  weights.save_pipeline(folder, config.to_dict(), params, scheduler)


def _refuse_choices(choices: pipeline_lib.Choices) -> None:
  if any(choices):
    raise ConfigError("model.vae, tokenizer and prediction_type are for Stable Diffusion's models")


def _tuple(value: Any) -> Any:
  return tuple(value) if isinstance(value, list | tuple) else value
