"""AdverseCleaner: a bilateral filter many times, then a guided filter that brings structure back.

The filter that lllyasviel published against Glaze and Mist (github.com/lllyasviel/AdverseCleaner).
Difference: the result is rounded to 8 bits by whoever saves it, where the original truncates. Its
author warns that the guided filter can bring a perturbation back, too.
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
    bilateral_passes: applications of the bilateral filter.
    diameter: of its disc of neighbours, odd, in pixels.
    sigma_color: on the [0, 1] scale.
    sigma_space: in pixels.
    guided_passes: applications of the guided filter, whose guide is the picture as it came.
    guided_radius: its windows have 2 * radius + 1 pixels a side.
    guided_regulariser: its epsilon, on the square of the [0, 1] scale.
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
