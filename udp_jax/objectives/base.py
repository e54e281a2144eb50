"""The type of an objective, and how objectives are combined.

`objective(params, images, cond, keys) -> (losses (B,), aux)` with images (B, H, W, C) float in
[0, 1], and keys (B,), one per picture. Objectives are always minimised; to maximise one, wrap it in
`negate`. Losses stay separate for each picture: they are *summed* for a perturbation, so that a
picture's delta does not depend on other pictures, and *averaged* for weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from udp_jax.models.base import Cond, Params
from udp_jax.ops.keys import split_each, stream

Aux = dict[str, jax.Array]
# (keys (B,), images (B, H, W, C) in [0, 1]) -> images.
Transform = Callable[[jax.Array, jax.Array], jax.Array]


class Objective(Protocol):
  """A loss that delta, or a model's weights, minimise."""

  def __call__(
    self, params: Params, images: jax.Array, cond: Cond, keys: jax.Array, /
  ) -> tuple[jax.Array, Aux]:
    """Computes the loss of each picture in a batch independently.

    Args:
      params: parameters of the model, or the result of `hold` on them.
      images: (B, H, W, C), float in [0, 1].
      cond: conditioning of each picture, leaves (B, ...); the whole `Batch` for objectives that
        also use the clean pictures (`pgd(sees_batch=True)`).
      keys: (B,), one per picture.

    Returns:
      Losses (B,), and named arrays for inspection.
    """


def averaged(objective: Objective, num_draws: int) -> Objective:
  """The mean of `num_draws` calls with separate keys, in the memory of one; aux is the last one's.

  >>> draw = lambda params, images, cond, keys: (jax.vmap(jax.random.uniform)(keys), {})
  >>> keys = jax.random.split(jax.random.key(0), 2)
  >>> losses, _ = averaged(draw, 100)(None, jnp.zeros((2, 4, 4, 3)), None, keys)
  >>> bool((abs(losses - 0.5) < 0.1).all())
  True
  """
  if num_draws == 1:
    return objective

  def mean(params: Params, images: jax.Array, cond: Cond, keys: jax.Array):
    @jax.checkpoint
    def draw(number: jax.Array):
      return objective(
        params,
        images,
        cond,
        jax.vmap(lambda key: jax.random.fold_in(stream(key, "draws"), number))(keys),
      )

    losses, aux = jax.lax.map(draw, jnp.arange(num_draws))
    return losses.mean(0), jax.tree.map(lambda leaf: leaf[-1], aux)

  return mean


def negate(objective: Objective) -> Objective:
  """Returns minus `objective`, so that minimising the result maximises `objective`.

  >>> brightness = lambda params, images, cond, keys: (images.mean((1, 2, 3)), {})
  >>> negate(brightness)(None, jnp.ones((2, 4, 4, 3)), None, None)[0].tolist()
  [-1.0, -1.0]
  """

  def negated(*args: Any):
    losses, aux = objective(*args)
    return -losses, aux

  return negated


def weighted(*terms: tuple[float, Objective]) -> Objective:
  """The sum of weight * objective. Each term draws with its own keys; aux merges all terms'.

  >>> brightness = lambda params, images, cond, keys: (images.mean((1, 2, 3)), {})
  >>> keys = jax.random.split(jax.random.key(0), 2)
  >>> both = weighted((2.0, brightness), (0.5, brightness))
  >>> both(None, jnp.ones((2, 4, 4, 3)), None, keys)[0].tolist()
  [2.5, 2.5]
  """

  def objective(params: Params, images: jax.Array, cond: Cond, keys: jax.Array):
    total = jnp.zeros(images.shape[0])
    merged: Aux = {}
    split = (keys,) if len(terms) == 1 else split_each(keys, len(terms))
    for (weight, term), term_keys in zip(terms, split, strict=True):
      losses, aux = term(params, images, cond, term_keys)
      total, merged = total + weight * losses, merged | aux
    return total, merged

  return objective
