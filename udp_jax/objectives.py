"""Objectives: what a perturbation or a model's weights descend.

`objective(params, images, cond, keys) -> (losses (B,), aux)` with images (B, H, W, C) float in
[0, 1], and keys (B,), one a picture. Always minimised: what is to be maximised is wrapped in a
visible `negate`. Losses stay apart per picture: they are *summed* for a perturbation, so that a
picture's delta depends on nobody else's, and *averaged* for weights.

Those of latents are in `objectives_latent`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from udp_jax.models.base import Cond, DiffusionModel, Params
from udp_jax.ops import schedules
from udp_jax.ops import timesteps as timesteps_lib
from udp_jax.randomness import normal_each, split_each, stream

Aux = dict[str, jax.Array]
Objective = Callable[[Params, jax.Array, Cond, jax.Array], tuple[jax.Array, Aux]]
# (keys (B,), images (B, H, W, C) in [0, 1]) -> images.
Transform = Callable[[jax.Array, jax.Array], jax.Array]


def denoising(model: DiffusionModel, probs: ArrayLike, *, dropout: bool = False) -> Objective:
  """E_{t, noise} mean || target - model(x_t, t) ||^2: L_simple of DDPM (arXiv:2006.11239, eq. 14).

  One timestep and one noise a picture and call; the mean is over the elements of x0.

  Args:
    model: the diffusion model.
    probs: distribution over timesteps, (T,): `ops.timesteps.uniform`, `.schedule_power`, ...
    dropout: turn the model's dropout on (for training its weights).

  Returns:
    An objective; aux holds `timesteps` (B,).
  """
  probs = jnp.asarray(probs)

  def objective(params: Params, images: jax.Array, cond: Cond, keys: jax.Array):
    key_t, key_noise, key_encode, key_dropout = split_each(keys, 4)
    x0 = model.encode(params, images, key_encode)
    timesteps = jax.vmap(lambda key: timesteps_lib.sample(key, probs))(key_t)
    noise = normal_each(key_noise, x0.shape[1:])
    x_t = schedules.add_noise(model.schedule, x0, noise, timesteps)
    prediction = model.apply(params, x_t, timesteps, cond, key_dropout if dropout else None)
    target = schedules.training_target(model.schedule, x0, noise, timesteps)
    losses = jnp.mean(jnp.square(prediction - target), axis=tuple(range(1, x0.ndim)))
    return losses, {"timesteps": timesteps}

  return objective


def flipped(objective: Objective) -> Objective:
  """Mirrors each picture left to right with probability 1/2 before `objective` sees it."""

  def augmented(params: Params, images: jax.Array, cond: Cond, keys: jax.Array):
    key_flip, keys = split_each(keys, 2)
    mirror = jax.vmap(jax.random.bernoulli)(key_flip)
    images = jnp.where(mirror[:, None, None, None], images[:, :, ::-1], images)
    return objective(params, images, cond, keys)

  return augmented


def over_transforms(
  objective: Objective, transforms: Sequence[Transform], num_draws: int = 1
) -> Objective:
  """The expectation of `objective` over random transforms of the pictures (EOT).

  Athalye et al. 2018 (arXiv:1707.07397). A draw takes one of the transforms for each picture, all
  equally likely. With one draw `objective` gets the keys themselves, so that the identity alone
  changes nothing; several are computed one after the other, in the memory of one.

  Args:
    objective: of the transformed pictures.
    transforms: (keys (B,), images) -> images, differentiable, each picture by its own key.
    num_draws: over which the losses are averaged. aux is that of the last.
  """

  def drawn(params: Params, images: jax.Array, cond: Cond, keys: jax.Array):
    key_choice, key_draw = split_each(jax.vmap(lambda key: stream(key, "transforms"))(keys), 2)
    choice = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(transforms)))(key_choice)
    moved = transforms[0](key_draw, images)
    for number, transform in enumerate(transforms[1:], 1):
      chosen = (choice == number)[:, None, None, None]
      moved = jnp.where(chosen, transform(key_draw, images), moved)
    return objective(params, moved, cond, keys)

  return averaged(drawn, num_draws)


def averaged(objective: Objective, num_draws: int) -> Objective:
  """The mean of `num_draws` calls with keys of their own, in the memory of one; aux of the last."""
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
  """Descending the result ascends `objective`."""

  def negated(*args: Any):
    losses, aux = objective(*args)
    return -losses, aux

  return negated


def weighted(*terms: tuple[float, Objective]) -> Objective:
  """Sum of weight * objective. Each term draws with keys of its own; aux is the terms' merged."""

  def objective(params: Params, images: jax.Array, cond: Cond, keys: jax.Array):
    total = jnp.zeros(images.shape[0])
    merged: Aux = {}
    split = (keys,) if len(terms) == 1 else split_each(keys, len(terms))
    for (weight, term), term_keys in zip(terms, split, strict=True):
      losses, aux = term(params, images, cond, term_keys)
      total, merged = total + weight * losses, merged | aux
    return total, merged

  return objective
