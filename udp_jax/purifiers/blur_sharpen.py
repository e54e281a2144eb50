"""Blurs, then sharpens: a protection's fine grain is lost, and most of the picture's edges return.

The sharpening is the unsharp mask of picture editors: what a blur takes away is added once more.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from udp_jax.models.base import DiffusionModel, Params
from udp_jax.ops import image
from udp_jax.purifiers.base import Purifier, no_params


def blur_sharpen(
  model: DiffusionModel | None, *, sigma: float = 1.0, amount: float = 1.5, mask_sigma: float = 1.0
) -> Purifier:
  """Applies a Gaussian blur and an unsharp mask; borders are mirrored.

  Args:
    model: unused.
    sigma: standard deviation of the blur, in pixels.
    amount: how many times the details are added; 0 only blurs, and picture editors offer up to 5.
    mask_sigma: standard deviation of the mask's blur, in pixels: details are what it takes away.

  Raises:
    ValueError: from `apply`, for pictures smaller than three standard deviations.

  >>> images, keys = jnp.full((1, 16, 16, 3), 0.5), jax.random.split(jax.random.key(0), 1)
  >>> blur_sharpen(None).apply({}, keys, images).mean().round(2).tolist()
  0.5
  """
  del model

  def apply(params: Params, keys: jax.Array, images: jax.Array) -> jax.Array:
    del params, keys
    blurred = image.gaussian_blur(images, sigma)
    details = blurred - image.gaussian_blur(blurred, mask_sigma)
    return jnp.clip(blurred + amount * details, 0.0, 1.0)

  return Purifier(no_params, apply)
