"""Total variation minimisation with pixels left out at random (Guo et al. 2018, arXiv:1711.00117).

The picture of least total variation that agrees with the pixels which were kept. Differences: the
data term is squared (Rudin, Osher & Fatemi), so that `weight` is on the scale of the picture, and
it is solved at the picture's own size by primal-dual steps; a public implementation shrinks every
picture to 64x64 first and calls a solver that needs a licence.
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
    weight: on the [0, 1] scale; about the size of what is to be removed.
    drop_rate: probability of a pixel to be left out and filled in; 0 draws nothing.
    num_steps: of the solver.
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
