"""Training a diffusion model from scratch on the pictures: the threat that UDP is about."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax

from udp_jax import objectives, training
from udp_jax.models.base import Cond, DiffusionModel, Params
from udp_jax.ops import samplers, timesteps
from udp_jax.threats.base import Threat
from udp_jax.threats.finetuning import learning_rates
from udp_jax.training import Batch, TrainState


def scratch(
  model: DiffusionModel,
  *,
  train_steps: int,
  learning_rate: float = 2e-4,
  warmup_steps: int = 0,
  decay: str = "constant",
  clip_norm: float = 1.0,
  ema_decay: float = 0.9999,
  flip: bool = False,
  sample_steps: int = 50,
  eta: float = 0.0,
) -> Threat:
  """DDPM training (Ho et al., arXiv:2006.11239) and DDIM sampling (Song et al., arXiv:2010.02502).

  Args:
    model: what is trained.
    train_steps: optimiser steps.
    learning_rate: of Adam, after the warm-up.
    warmup_steps: linear warm-up from 0.
    decay: "constant", or "cosine" to 0 over the rest.
    clip_norm: global norm at which the gradient is clipped.
    ema_decay: of the averaged parameters that are sampled from.
    flip: train on pictures flipped left to right half of the time.
    sample_steps: of DDIM.
    eta: of DDIM; 0 is deterministic.

  Raises:
    ConfigError: unknown decay.
  """
  rate = learning_rates(train_steps, learning_rate, warmup_steps=warmup_steps, decay=decay)
  tx = optax.chain(optax.clip_by_global_norm(clip_norm), optax.adam(rate))
  uniform = timesteps.uniform(len(model.schedule.alphas_cumprod))
  objective = objectives.denoising(model, uniform, dropout=True)
  step = training.make_update(
    objectives.flipped(objective) if flip else objective, tx, ema_decay=ema_decay
  )

  def init(key: jax.Array, params: Params | None) -> TrainState:
    # A copy: the state is donated to every call, the caller's parameters are not.
    fresh = model.init(key) if params is None else jax.tree.map(jnp.copy, params)
    return training.init_state(fresh, tx, ema=True)

  def update(key: jax.Array, state: TrainState, data: Batch, num_steps: int, params=None):
    del params  # All of them are in the state.
    return training.train_steps(step, key, state, data, num_steps)

  def sample(
    key: jax.Array, params: Params, num_samples: int, cond: Cond = None, uncond: Cond = None
  ) -> jax.Array:
    del uncond  # No guidance.
    predict = partial(model.apply, model.hold(params), cond=cond)
    shape = (num_samples, *model.shape)
    x0 = samplers.ddim(key, predict, model.schedule, shape, num_steps=sample_steps, eta=eta)
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
