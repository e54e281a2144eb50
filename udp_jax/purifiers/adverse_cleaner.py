"""AdverseCleaner: a repeated bilateral filter, then a guided filter that restores structure.

The filter that lllyasviel published against Glaze and Mist (github.com/lllyasviel/AdverseCleaner).
Difference: the code that saves the result rounds it to 8 bits, where the original truncates. Its
author warns that the guided filter can also restore a perturbation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from udp_jax.models.base import DiffusionModel, Params
from udp_jax.ops import filters
from udp_jax.purifiers.base import Purifier, no_params


def adverse_cleaner(
  model: DiffusionModel | None,
  *,
  bilateral_passes: int = 64,
  diameter: int = 5,
  sigma_color: float = 8 / 255,
  sigma_space: float = 8.0,
  guided_passes: int = 4,
  guided_radius: int = 4,
  guided_regulariser: float = 16 / 255**2,
) -> Purifier:
  """The published filter: 64 x bilateral(5, 8, 8), then 4 x guided(radius 4, epsilon 16).

  Args:
    model: unused.
    bilateral_passes: number of passes of the bilateral filter.
    diameter: odd diameter of the bilateral filter's disc of neighbours, in pixels.
    sigma_color: standard deviation of its weights over colours, on the [0, 1] scale.
    sigma_space: standard deviation of its weights over distances, in pixels.
    guided_passes: number of passes of the guided filter, whose guide is the input picture.
    guided_radius: radius of its windows, which have 2 * radius + 1 pixels per side.
    guided_regulariser: epsilon of the guided filter, on the square of the [0, 1] scale.

  >>> images, keys = jnp.full((1, 16, 16, 3), 0.5), jax.random.split(jax.random.key(0), 1)
  >>> adverse_cleaner(None, bilateral_passes=2).apply({}, keys, images).mean().round(2).tolist()
  0.5
  """
  del model

  def apply(params: Params, keys: jax.Array, images: jax.Array) -> jax.Array:
    del params, keys

    def smooth(_: jax.Array, x: jax.Array) -> jax.Array:
      return filters.bilateral(
        x, diameter=diameter, sigma_color=sigma_color, sigma_space=sigma_space
      )

    def restore(_: jax.Array, x: jax.Array) -> jax.Array:
      return filters.guided(images, x, radius=guided_radius, regulariser=guided_regulariser)

    smoothed = jax.lax.fori_loop(0, bilateral_passes, smooth, images)
    return jnp.clip(jax.lax.fori_loop(0, guided_passes, restore, smoothed), 0.0, 1.0)

  return Purifier(no_params, apply)
