"""Bilateral filter: smooths differences smaller than `sigma_color` and keeps edges."""

from __future__ import annotations

import jax

from udp_jax.models.base import DiffusionModel, Params
from udp_jax.ops import filters
from udp_jax.purifiers.base import Purifier, no_params


def bilateral(
  model: DiffusionModel | None,
  *,
  diameter: int = 5,
  sigma_color: float = 8 / 255,
  sigma_space: float = 8.0,
  num_passes: int = 1,
) -> Purifier:
  """OpenCV's bilateral filter, several times in a row.

  Args:
    model: unused.
    diameter: odd diameter of the disc of neighbours, in pixels.
    sigma_color: standard deviation of the weights over sums of absolute differences of the
      channels, on the [0, 1] scale.
    sigma_space: standard deviation of the weights over distances, in pixels.
    num_passes: number of passes of the filter.

  >>> images, keys = jax.numpy.full((1, 16, 16, 3), 0.5), jax.random.split(jax.random.key(0), 1)
  >>> bilateral(None, num_passes=2).apply({}, keys, images).mean().round(2).tolist()
  0.5
  """
  del model

  def apply(params: Params, keys: jax.Array, images: jax.Array) -> jax.Array:
    del params, keys

    def once(_: jax.Array, images: jax.Array) -> jax.Array:
      return filters.bilateral(
        images, diameter=diameter, sigma_color=sigma_color, sigma_space=sigma_space
      )

    return jax.lax.fori_loop(0, num_passes, once, images)

  return Purifier(no_params, apply)
