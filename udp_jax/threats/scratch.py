"""Trains a diffusion model from scratch on the pictures: the threat that UDP addresses."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from udp_jax import registry
from udp_jax.data.batches import Batch
from udp_jax.models.base import Cond, DiffusionModel, Params
from udp_jax.models.sampling import Sampling
from udp_jax.objectives import clipping
from udp_jax.objectives import training as training_lib
from udp_jax.objectives.denoising import denoising, flipped
from udp_jax.objectives.training import TrainState
from udp_jax.ops import samplers, timesteps
from udp_jax.threats.base import Threat
from udp_jax.threats.finetuning import Training, learning_rates

# Fields of the option groups that this threat uses.
TRAINING = ("learning_rate", "warmup_steps", "decay", "clip_norm", "ema_decay", "flip")
SAMPLING = ("sample_steps", "eta")


def scratch(
  model: DiffusionModel,
  *,
  train_steps: int,
  training: Annotated[Training, TRAINING] = Training(learning_rate=2e-4, ema_decay=0.9999),
  sampling: Annotated[Sampling, SAMPLING] = Sampling(),
) -> Threat:
  """DDPM training (Ho et al., arXiv:2006.11239) and DDIM sampling (Song et al., arXiv:2010.02502).

  Args:
    model: the model that is trained.
    train_steps: total number of optimiser steps.
    training: learning rate of Adam, warm-up, decays, clipping, averaging and flips. Samples come
      from the averaged parameters.
    sampling: number of DDIM steps, and their noise.

  Raises:
    ConfigError: the decay is unknown.

  >>> from udp_jax.models import toy
  >>> training = Training(learning_rate=1e-3, warmup_steps=10, ema_decay=0.99)
  >>> threat = scratch(toy.on_pixels(), train_steps=20, training=training)
  >>> threat.train_steps, threat.needs_params
  (20, False)
  """
  registry.only("scratch", training, TRAINING)
  registry.only("scratch", sampling, SAMPLING)
  rate = learning_rates(train_steps, training)
  tx = optax.chain(clipping.clip_by_global_norm(training.clip_norm), optax.adam(rate))
  uniform = timesteps.uniform(len(model.schedule.alphas_cumprod))
  objective = denoising(model, uniform, dropout=True)
  objective = flipped(objective) if training.flip else objective
  step = training_lib.make_update(objective, tx, ema_decay=training.ema_decay)

  def init(key: jax.Array, params: Params | None) -> TrainState:
    # A copy, because every call donates the state but not the caller's parameters.
    fresh = model.init(key) if params is None else jax.tree.map(jnp.copy, params)
    return training_lib.init_state(fresh, tx, ema=True)

  def update(key: jax.Array, state: TrainState, data: Batch, num_steps: int, params=None):
    del params  # All parameters are in the state.
    return training_lib.train_steps(step, key, state, data, num_steps)

  def sample(
    key: jax.Array, params: Params, num_samples: int, cond: Cond = None, uncond: Cond = None
  ) -> jax.Array:
    del uncond  # There is no guidance.
    predict = partial(model.apply, model.hold(params), cond=cond)
    shape = (num_samples, *model.shape)
    steps, options = samplers.Steps(sampling.sample_steps), samplers.DDIM(sampling.eta)
    x0 = samplers.ddim(key, predict, model.schedule, shape, steps=steps, options=options)
    return model.decode(params, x0)

  def final(state: TrainState) -> Params:
    return state.ema_params

  return Threat(
    init=jax.jit(init),
    update=jax.jit(update, static_argnums=3, donate_argnums=1),
    sample=jax.jit(sample, static_argnums=2),
    final=final,
    train_steps=train_steps,
  )
