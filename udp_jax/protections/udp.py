"""UDP: unlearnable diffusion perturbations (Zhao et al. 2023, arXiv:2306.01902).

max over delta, |delta|_inf <= radius, of min over theta of
E_{x, t, noise} || noise - noise_theta(sqrt(abar_t) (x + delta) + sqrt(1 - abar_t) noise, t) ||^2,
solved by alternation: the surrogate learns the protected pictures, the pictures move away from it.
"""

from __future__ import annotations

import optax
from jax.typing import ArrayLike

from udp_jax import constraints, objectives
from udp_jax.errors import ConfigError
from udp_jax.models import trainable as trainable_lib
from udp_jax.models.base import DiffusionModel
from udp_jax.ops import timesteps
from udp_jax.protections.adaptive import adapted
from udp_jax.protections.base import Protection, pgd, sign_descent
from udp_jax.protections.maxmin import bilevel, joint


def udp(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  train_steps: int = 30,
  perturb_steps: int = 2,
  start: str = "sign",
  learning_rate: float = 8e-4,
  clip_norm: float = 1.0,
  warmup_rounds: int = 0,
  restart_every: int = 0,
  probs: ArrayLike | None = None,
  joint_gradients: bool = False,
  trains: str = "denoiser",
  rank: int = 4,
  transforms: str = "",
  consistency_weight: float = 0.0,
) -> Protection:
  """The bilevel loop with timesteps drawn uniformly.

  Args:
    model: class of the surrogate, trained from scratch unless `init` gets parameters.
    radius: L-inf budget on the [0, 1] scale.
    step_size: of a sign step, on the [0, 1] scale.
    train_steps: optimiser steps of the surrogate in each round.
    perturb_steps: sign steps of every picture in each round.
    start: of delta: "zero", "uniform" or "sign".
    learning_rate: of the surrogate's Adam.
    clip_norm: global norm at which the surrogate's gradient is clipped.
    warmup_rounds: first rounds that only train.
    restart_every: rounds after which the surrogate starts afresh; 0 for never.
    probs: (T,) distribution over the timesteps of the perturb steps; None for uniform. The
      surrogate trains on uniform timesteps, as whoever trains on the pictures will.
    joint_gradients: one backward pass for both sides (`maxmin.joint`): `perturb_steps` does not
      count then, and `probs` holds for both sides.
    trains: what of the surrogate is trained: "denoiser" (the whole U-Net), or of a latent model's
      U-Net "lora" or "cross_attention" (keys and values of the text, as in CAAT).
    rank: of the factors of "lora".
    transforms: see `adaptive`; of the perturb steps.
    consistency_weight: see `adaptive`; latent models only.

  Raises:
    ConfigError: an option that joint steps do not have, or an unknown part.
  """
  trainable = trainable_lib.by_name(trains, rank=rank)
  uniform = timesteps.uniform(len(model.schedule.alphas_cumprod))
  probs = uniform if probs is None else probs
  constraint, ascent = constraints.linf(radius, start=start), sign_descent(step_size)
  tx = optax.chain(optax.clip_by_global_norm(clip_norm), optax.adam(learning_rate))
  if joint_gradients:
    if warmup_rounds or restart_every:
      raise ConfigError("joint_gradients does not go with warmup_rounds or restart_every")
    if transforms or consistency_weight:
      raise ConfigError("joint_gradients does not go with transforms or consistency_weight")
    both = objectives.denoising(model, probs, dropout=True)
    return joint(
      both,
      tx,
      constraint,
      ascent,
      init_params=model.init,
      train_steps=train_steps,
      trainable=trainable,
    )
  attacking = adapted(
    model,
    objectives.negate(objectives.denoising(model, probs)),
    transforms=transforms,
    consistency_weight=consistency_weight,
  )
  return bilevel(
    pgd(attacking, constraint, ascent),
    objectives.denoising(model, uniform, dropout=True),
    tx,
    init_params=model.init,
    train_steps=train_steps,
    perturb_steps=perturb_steps,
    warmup_rounds=warmup_rounds,
    restart_every=restart_every,
    hold=model.hold,
    trainable=trainable,
  )
