"""The denoising objective: a diffusion model's own training loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from udp_jax.models.base import Cond, DiffusionModel, Params
from udp_jax.objectives.base import Objective
from udp_jax.ops import schedules
from udp_jax.ops import timesteps as timesteps_lib
from udp_jax.ops.keys import normal_each, split_each


def denoising(model: DiffusionModel, probs: ArrayLike, *, dropout: bool = False) -> Objective:
  """E_{t, noise} mean || target - model(x_t, t) ||^2: L_simple of DDPM (arXiv:2006.11239, eq. 14).

  Each call draws one timestep and one noise per picture; the mean is over the elements of x0.

  Args:
    model: the diffusion model.
    probs: distribution over timesteps, (T,): `ops.timesteps.uniform`, `.schedule_power`, ...
    dropout: whether to turn on the model's dropout (for training its weights).

  Returns:
    An objective; aux holds `timesteps` (B,).

  >>> from udp_jax.models import toy
  >>> model = toy.on_pixels()
  >>> objective = denoising(model, timesteps_lib.uniform(50))
  >>> keys = jax.random.split(jax.random.key(0), 2)
  >>> params = model.init(jax.random.key(1))
  >>> losses, aux = objective(params, jnp.full((2, 8, 8, 3), 0.5), None, keys)
  >>> losses.shape, aux["timesteps"].shape
  ((2,), (2,))
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
  """Mirrors each picture left to right with probability 1/2 before `objective` sees it.

  >>> corner = lambda params, images, cond, keys: (images[:, 0, 0, 0], {})
  >>> images = jnp.zeros((8, 2, 2, 3)).at[:, :, 0].set(1.0)
  >>> keys = jax.random.split(jax.random.key(0), 8)
  >>> sorted(set(flipped(corner)(None, images, None, keys)[0].tolist()))
  [0.0, 1.0]
  """

  def augmented(params: Params, images: jax.Array, cond: Cond, keys: jax.Array):
    key_flip, keys = split_each(keys, 2)
    mirror = jax.vmap(jax.random.bernoulli)(key_flip)
    images = jnp.where(mirror[:, None, None, None], images[:, :, ::-1], images)
    return objective(params, images, cond, keys)

  return augmented
