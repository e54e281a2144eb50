"""ASPL: surrogate and perturbation in turn, with a look at what clean training would do.

Anti-DreamBooth (Le et al. 2023, arXiv:2303.15433), alternating surrogate and perturbation learning.
A round: a copy of the surrogate trains on the clean pictures, delta climbs the copy's denoising
loss, the copy is thrown away, the surrogate trains on the protected pictures. Published on [-1, 1]:
radius 0.05, steps 0.005, which are 6.4 and 0.64 of 255 levels; 50 rounds of 3 train and 6 perturb
steps; AdamW at 5e-7 (the program's default is 5e-6), made afresh for each training, U-Net and text
encoder. See `surrogates` for what differs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from udp_jax.models.base import DiffusionModel, Params
from udp_jax.protections import surrogates
from udp_jax.protections.base import Info, Protection
from udp_jax.protections.maxmin import BilevelState
from udp_jax.randomness import stream
from udp_jax.training import Batch


def aspl(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  train_steps: int = 3,
  perturb_steps: int = 6,
  start: str = "zero",
  learning_rate: float = 5e-7,
  weight_decay: float = 1e-2,
  clip_norm: float = 1.0,
  trains: str = "denoiser",
  rank: int = 4,
  transforms: str = "",
  consistency_weight: float = 0.0,
) -> Protection:
  """Rounds of: copy and train on clean, perturb, train on protected.

  `Info.train_loss` is that of the surrogate, not of its copies.

  Args:
    model: the attacked model; `init` and `update` need its trained parameters.
    radius: L-inf budget on the [0, 1] scale (published: 6.4 / 255).
    step_size: on the [0, 1] scale (published: 0.64 / 255, 50 rounds of 6).
    train_steps: of the copy on clean pictures, and again of the surrogate on protected ones, in
      each round.
    perturb_steps: of every picture in each round.
    start: of delta: "zero", "uniform" or "sign".
    learning_rate: of the surrogate's AdamW.
    weight_decay: of the surrogate's AdamW.
    clip_norm: global norm at which the surrogate's gradient is clipped.
    trains: see `surrogates.fine_tuned`; published: "denoiser_and_text".
    rank: see `surrogates.fine_tuned`.
    transforms: see `adaptive`.
    consistency_weight: see `adaptive`.

  Raises:
    ConfigError: an option that cannot be used.
  """
  surrogate = surrogates.fine_tuned(
    model,
    train_steps=train_steps,
    learning_rate=learning_rate,
    weight_decay=weight_decay,
    clip_norm=clip_norm,
    trains=trains,
    rank=rank,
  )
  perturb = surrogates.climbing(
    model,
    radius=radius,
    step_size=step_size,
    perturb_steps=perturb_steps,
    start=start,
    transforms=transforms,
    consistency_weight=consistency_weight,
  )

  def init(key: jax.Array, data: Batch, params: Params) -> BilevelState:
    # Optimisers live for one training: between rounds there is nothing of them to keep.
    fresh = surrogate.init(stream(key, "surrogate"), params)._replace(opt_state=())
    deltas = perturb.init(stream(key, "start"), data, params)
    return BilevelState(deltas, fresh, jnp.zeros((), jnp.int32))

  def update(key: jax.Array, state: BilevelState, data: Batch, params: Params, phase=None):
    del phase  # The copy would have to be kept between parts.
    kept = state.surrogate._replace(opt_state=surrogate.tx.init(state.surrogate.params))
    copy, _ = surrogate.steps(stream(key, "copy"), kept, data, None, params)
    target = surrogates.attacked(surrogate, copy.params, params)
    deltas, info = perturb.update(stream(key, "perturb"), state.inner, data, target)
    trained, train_loss = surrogate.steps(stream(key, "train"), kept, data, deltas.delta, params)
    trained = trained._replace(opt_state=())
    return BilevelState(deltas, trained, state.round + 1), Info(info.loss, train_loss)

  return Protection(init, update, needs_params=True, perturb_steps=perturb_steps)
