"""Total variation minimisation with pixels dropped at random (Guo et al. 2018, arXiv:1711.00117).

Finds the picture of least total variation that agrees with the remaining pixels. Differences: the
data term is squared (Rudin, Osher & Fatemi), so that `weight` is on the scale of the picture, and
the picture is solved at its own size by primal-dual steps; a public implementation first shrinks
every picture to 64x64 and calls a solver that needs a licence.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from udp_jax.models.base import DiffusionModel, Params
from udp_jax.ops import filters
from udp_jax.purifiers.base import Purifier, no_params


def total_variation(
  model: DiffusionModel | None,
  *,
  weight: float = 0.05,
  drop_rate: float = 0.02,
  num_steps: int = 100,
) -> Purifier:
  """Minimises 1/2 |kept * (u - images)|^2 + weight * TV(u).

  Args:
    model: unused.
    weight: strength of the smoothing; about the size, on the [0, 1] scale, of details to remove.
    drop_rate: probability that a pixel is dropped and filled in; 0 draws nothing.
    num_steps: number of solver steps.

  >>> images, keys = jnp.full((1, 16, 16, 3), 0.5), jax.random.split(jax.random.key(0), 1)
  >>> total_variation(None, num_steps=2).apply({}, keys, images).shape
  (1, 16, 16, 3)
  """
  del model

  def apply(params: Params, keys: jax.Array, images: jax.Array) -> jax.Array:
    del params
    mask = None
    if drop_rate > 0.0:
      shape = (*images.shape[1:3], 1)
      kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - drop_rate, shape))(keys)
      mask = kept.astype(images.dtype)
    smooth = filters.total_variation(images, weight=weight, num_steps=num_steps, mask=mask)
    return jnp.clip(smooth, 0.0, 1.0)

  return Purifier(no_params, apply)
