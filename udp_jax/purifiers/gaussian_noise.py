"""Gaussian noise: hides a perturbation under random noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from udp_jax.models.base import DiffusionModel, Params
from udp_jax.ops.keys import normal_each
from udp_jax.purifiers.base import Purifier, no_params


def gaussian_noise(model: DiffusionModel | None, *, std: float = 0.05) -> Purifier:
  """Adds independent noise to every value and clips.

  Published studies use 0.05 (Hoenig et al., arXiv:2406.12027, before an upscaler) to 0.1.

  Args:
    model: unused.
    std: standard deviation on the [0, 1] scale.

  >>> images, keys = jnp.full((1, 16, 16, 3), 0.5), jax.random.split(jax.random.key(0), 1)
  >>> gaussian_noise(None, std=0.05).apply({}, keys, images).mean().round(2).tolist()
  0.5
  """
  del model

  def apply(params: Params, keys: jax.Array, images: jax.Array) -> jax.Array:
    del params
    return jnp.clip(images + std * normal_each(keys, images.shape[1:]), 0.0, 1.0)

  return Purifier(no_params, apply)
