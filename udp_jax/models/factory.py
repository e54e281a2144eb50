"""Models from a config or from a diffusers folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

from udp_jax.errors import ConfigError
from udp_jax.models import latent, places, published, weights
from udp_jax.models import performance as performance_lib
from udp_jax.models import pipeline as pipeline_lib
from udp_jax.models.base import DiffusionModel, Params, pixel_diffusion
from udp_jax.models.ddpm_unet import UNet2D, UNet2DConfig
from udp_jax.models.pipeline import Pipeline
from udp_jax.ops import schedules

SCHEDULES: dict[str, Callable[..., schedules.NoiseSchedule]] = {
  "linear": schedules.linear,
  "scaled_linear": schedules.scaled_linear,
  "cosine": schedules.cosine,
}


class Opened(NamedTuple):
  """A model of any kind.

  Attributes:
    model: the functions.
    params: as loaded; None for a fresh model.
    unet: the config of a pixel model's U-Net; None for a latent model.
    pipeline: of a latent model; None for a pixel model.
  """

  model: DiffusionModel
  params: Params | None
  unet: UNet2DConfig | None
  pipeline: Pipeline | None


def open_model(config: Any, performance: Any) -> Opened:
  """The model that a config names: a Stable Diffusion folder or "tiny_ldm", or as `build`.

  Raises:
    ConfigError, MissingDataError, BadDataError: see `build` and `pipeline.load_pipeline`.
  """
  if config.get("architecture") and not config.path:
    raise ConfigError(
      "config.model.path is needed: the folder of a Stable Diffusion model, as diffusers writes "
      "it, or tiny_ldm for the small one in the package"
    )
  if config.path and pipeline_lib.is_pipeline(config.path):
    size = config.get("image_size") or None
    opened = pipeline_lib.load_pipeline(config.path, performance, image_size=size)
    return Opened(opened.model, opened.params, None, opened)
  model, unet, params = build(config, performance)
  return Opened(model, params, unet, None)


def abstract_model(config: Any, performance: Any) -> tuple[DiffusionModel, Params]:
  """The model of a config and the shapes and dtypes of its parameters, without any weights.

  Args:
    config: `config.model`, as for `build`; `architecture` names one of `models.published`, for
      Stable Diffusion without a folder.
    performance: `config.performance`.

  Raises:
    ConfigError, MissingDataError, BadDataError: see `open_model`.
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
  """The model that a config describes, and its parameters when it is loaded from a folder.

  Args:
    config: `config.model`: `path` (a diffusers folder; "" for a fresh model), `unet` (fields of
      `UNet2DConfig`, for a fresh model), `schedule` ("linear", ...), `num_train_timesteps`.
    performance: `config.performance`: `dtype`, `conv_method`, `attention` ("" for the backend's
      default each), `remat`.

  Raises:
    ConfigError: an unknown schedule, dtype, convolution method, attention or U-Net field.
    MissingDataError: the folder or a file of it is not there.
    BadDataError: tensors that do not fit.
  """
  options = performance_lib.module_options(performance)
  if config.path:
    return load(config.path, **options)
  if config.schedule not in SCHEDULES:
    raise ConfigError(f"unknown schedule {config.schedule!r}; known: {', '.join(SCHEDULES)}")
  try:
    unet_config = UNet2DConfig(**{k: _tuple(v) for k, v in dict(config.unet).items()})
  except TypeError as error:
    raise ConfigError(f"config.model.unet: {error}") from error
  schedule = SCHEDULES[config.schedule](config.num_train_timesteps)
  return pixel_diffusion(UNet2D(unet_config, **options), schedule), unet_config, None


def load(folder: str | os.PathLike, **options: Any) -> tuple[DiffusionModel, UNet2DConfig, Params]:
  """A model from a diffusers `UNet2DModel` or `DDPMPipeline` folder; `options` go to `UNet2D`.

  A folder without a scheduler gets the linear schedule of Ho et al.

  Raises:
    MissingDataError: the folder or a file of it is not there.
    BadDataError: tensors that do not fit.
  """
  if places.kind_of(folder) != places.PIXEL:
    raise ConfigError(f"{folder} holds a latent diffusion model: a model of pixels is needed here")
  folder = places.resolve(folder)
  raw, tensors = weights.load_pretrained(folder)
  try:
    unet_config = UNet2DConfig.from_dict(raw)
  except ConfigError as error:
    raise places.unsupported(folder, error) from error
  scheduler = weights.load_scheduler_config(folder)
  schedule = weights.schedule_from_config(scheduler) if scheduler else schedules.linear()
  model = pixel_diffusion(UNet2D(unet_config, **options), schedule)
  template = jax.eval_shape(model.init, jax.random.key(0))
  params = weights.from_torch_names(tensors, template)
  # Not jnp.asarray, which compiles a program for every shape.
  return model, unet_config, jax.device_put(params)


def save(
  folder: str | os.PathLike, model: DiffusionModel, config: UNet2DConfig, params: Params
) -> None:
  """Writes a folder that `load` and diffusers' `DDPMPipeline.from_pretrained` open."""
  scheduler = weights.scheduler_config(model.schedule)
  weights.save_pipeline(folder, config.to_dict(), params, scheduler)


def _tuple(value: Any) -> Any:
  return tuple(value) if isinstance(value, list | tuple) else value
