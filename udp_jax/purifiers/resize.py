"""Shrinks and enlarges pictures: details that the small picture cannot hold are lost."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.ops import image
from udp_jax.purifiers.base import Purifier, no_params


def resize(
  model: DiffusionModel | None, *, factor: float = 0.5, method: str = "lanczos3"
) -> Purifier:
  """Resizes to `factor` of height and width, and back.

  Args:
    model: unused.
    factor: size of the small picture as a share of the original, in (0, 1).
    method: "nearest", "linear", "cubic", "lanczos3" or "lanczos5", for both directions.

  Raises:
    ConfigError: the method is unknown, or the factor is outside (0, 1).

  >>> images, keys = jnp.full((1, 16, 16, 3), 0.5), jax.random.split(jax.random.key(0), 1)
  >>> resize(None).apply({}, keys, images).mean().round(2).tolist()
  0.5
  """
  del model
  methods = tuple(m for m in image.RESIZE_METHODS if m != "box")
  if method not in methods:
    raise ConfigError(f"purifier resize: method {method!r} is not one of {', '.join(methods)}")
  if not 0.0 < factor < 1.0:
    raise ConfigError(f"purifier resize: factor must be in (0, 1), got {factor}")

  def apply(params: Params, keys: jax.Array, images: jax.Array) -> jax.Array:
    del params, keys
    height, width = images.shape[1:3]
    small = (max(1, round(factor * height)), max(1, round(factor * width)))
    shrunk = image.resize(images, small, method=method)
    return jnp.clip(image.resize(shrunk, (height, width), method=method), 0.0, 1.0)

  return Purifier(no_params, apply)
