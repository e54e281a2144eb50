"""Gaussian blur: removes the high frequencies of the perturbation, and of the picture."""

from __future__ import annotations

import jax

from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.ops import image
from udp_jax.purifiers.base import Purifier, no_params


def gaussian_blur(
  model: DiffusionModel | None, *, sigma: float = 1.0, kernel_size: int = 0
) -> Purifier:
  """Blurs every picture; borders are mirrored.

  Published strengths differ far more than those of other filters: MetaCloak trains against 7 taps,
  DiffShortcut blurs with a radius of 7 pixels, which leaves only a sketch of the picture.

  Args:
    model: unused.
    sigma: standard deviation of the blur, in pixels.
    kernel_size: odd number of taps; 0 uses 3 sigma on each side.

  Raises:
    ConfigError: the number of taps is even.

  >>> images, keys = jax.numpy.full((1, 16, 16, 3), 0.5), jax.random.split(jax.random.key(0), 1)
  >>> gaussian_blur(None, sigma=2.0).apply({}, keys, images).mean().round(2).tolist()
  0.5
  """
  del model
  if kernel_size and kernel_size % 2 == 0:
    raise ConfigError(f"purifier gaussian_blur: kernel_size must be odd or 0, got {kernel_size}")

  def apply(params: Params, keys: jax.Array, images: jax.Array) -> jax.Array:
    del params, keys
    return image.gaussian_blur(images, sigma, kernel_size=kernel_size or None)

  return Purifier(no_params, apply)
