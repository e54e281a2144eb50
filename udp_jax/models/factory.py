"""Models from a config or from a diffusers folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from udp_jax.errors import ConfigError
from udp_jax.models import weights
from udp_jax.models.base import DiffusionModel, Params, pixel_diffusion
from udp_jax.models.ddpm_unet import UNet2D, UNet2DConfig
from udp_jax.ops import attention, conv, schedules

SCHEDULES: dict[str, Callable[..., schedules.NoiseSchedule]] = {
  "linear": schedules.linear,
  "scaled_linear": schedules.scaled_linear,
  "cosine": schedules.cosine,
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


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
  if performance.dtype not in DTYPES:
    raise ConfigError(f"unknown dtype {performance.dtype!r}; known: {', '.join(DTYPES)}")
  if performance.conv_method and performance.conv_method not in conv.METHODS:
    known = ", ".join(conv.METHODS)
    raise ConfigError(f"unknown conv_method {performance.conv_method!r}; known: {known}")
  function = performance.get("attention") or attention.default()
  if function not in attention.FUNCTIONS:
    known = ", ".join(attention.FUNCTIONS)
    raise ConfigError(f"unknown attention {function!r}; known: {known}")
  if function == "flash" and jax.default_backend() != "tpu":
    raise ConfigError("attention 'flash' runs on TPUs only; 'chunked' saves memory elsewhere")
  options = {
    "attention": attention.FUNCTIONS[function],
    "dtype": DTYPES[performance.dtype],
    "conv_method": performance.conv_method or None,
    "remat": performance.remat,
  }
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
  raw, tensors = weights.load_pretrained(folder)
  unet_config = UNet2DConfig.from_dict(raw)
  scheduler = weights.load_scheduler_config(folder)
  schedule = weights.schedule_from_config(scheduler) if scheduler else schedules.linear()
  model = pixel_diffusion(UNet2D(unet_config, **options), schedule)
  template = jax.eval_shape(model.init, jax.random.key(0))
  params = weights.from_torch_names(tensors, template)
  return model, unet_config, jax.tree.map(jnp.asarray, params)


def save(
  folder: str | os.PathLike, model: DiffusionModel, config: UNet2DConfig, params: Params
) -> None:
  """Writes a folder that `load` and diffusers' `DDPMPipeline.from_pretrained` open."""
  scheduler = weights.scheduler_config(model.schedule)
  weights.save_pipeline(folder, config.to_dict(), params, scheduler)


def _tuple(value: Any) -> Any:
  return tuple(value) if isinstance(value, list | tuple) else value
