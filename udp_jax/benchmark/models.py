"""Our models with random weights, from the same fields that the PyTorch contestants get."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from udp_jax.models import factory, latent, pipeline
from udp_jax.models.base import DiffusionModel
from udp_jax.models.ddpm_unet import UNet2DConfig
from udp_jax.models.sd_unet import UNet2DConditionConfig
from udp_jax.models.sd_vae import AutoencoderKLConfig

# Models of more parameters repeat some of this many numbers.
_MANY, _DRAWN = 2**26, 2**22
# The schedule of Stable Diffusion 1.x.
_SCHEDULER = {
  "num_train_timesteps": 1000,
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "beta_end": 0.012,
}


def build(
  unet: Mapping[str, Any],
  performance: Mapping[str, Any],
  *,
  vae: Mapping[str, Any] | None = None,
  image_size: int = 0,
) -> DiffusionModel:
  """Builds a model of the library from the fields of a config.

  Args:
    unet: fields of `UNet2DConfig`, or with a VAE of `UNet2DConditionConfig`.
    performance: `config.performance`.
    vae: fields of `AutoencoderKLConfig`; None for a model on pixels.
    image_size: side of a latent model's pictures, in pixels.

  Raises:
    ConfigError: `factory.build` or `latent_diffusion` refuses a field.
  """
  if vae is None:
    config = {"path": "", "unet": dict(unet), "schedule": "linear", "num_train_timesteps": 1000}
    model, _, _ = factory.build(ConfigDict(config), ConfigDict(performance))
    return model
  parts = {
    latent.UNET: UNet2DConditionConfig(**_tuples(unet)),
    latent.VAE: AutoencoderKLConfig(**_tuples(vae)),
  }
  return pipeline.build_model(parts, _SCHEDULER, performance, image_size=image_size)


def diffusers_configs(
  unet: Mapping[str, Any], vae: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """Returns diffusers' configs for the same networks, {"unet"} or {"unet", "vae"}."""
  if vae is None:
    return {"unet": UNet2DConfig(**_tuples(unet)).to_dict()}
  return {
    "unet": UNet2DConditionConfig(**_tuples(unet)).to_dict(),
    "vae": AutoencoderKLConfig(**_tuples(vae)).to_dict(),
  }


def random_params(model: DiffusionModel, generator: np.random.Generator) -> Any:
  """Draws parameters without zeros; zero last layers would make every gradient of delta zero.

  A model of over 2^26 parameters gets windows of one draw of 2^22 numbers, which takes seconds
  less.
  """
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  large = sum(leaf.size for leaf in jax.tree.leaves(shapes)) > _MANY
  drawn = generator.standard_normal(_DRAWN if large else 0, np.float32)

  def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    scale = np.sqrt(max(1, int(np.prod(leaf.shape[:-1]))))
    if large:
      values = _window(drawn, jax.tree_util.keystr(path), leaf.shape) / np.float32(scale)
    else:
      values = generator.standard_normal(leaf.shape, np.float32) / scale
    return (values if len(leaf.shape) > 1 else np.ones(leaf.shape)).astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def _window(drawn: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Returns numbers of `drawn` from a place that the name decides on, repeated if they are few."""
  size, place = int(np.prod(shape)), zlib.crc32(name.encode())
  if size <= len(drawn):
    place %= len(drawn) - size + 1
    return drawn[place : place + size].reshape(shape)
  return np.resize(np.roll(drawn, -(place % len(drawn))), shape)


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
  return {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
