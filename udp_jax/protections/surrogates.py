"""Surrogates that are fine-tuned from the attacked model: what FSMG and ASPL share.

As VinAIResearch/Anti-DreamBooth trains them: AdamW, gradient clipped to a norm of 1, timesteps
uniform. Differences: a step trains on a batch of pictures (theirs: on one), there are no class
pictures (theirs: prior preservation with weight 1), and the clean pictures are the protected ones
before protection (theirs: others of the same person).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from udp_jax import constraints, objectives, training
from udp_jax.models import trainable as trainable_lib
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.models.trainable import Theta, Trainable
from udp_jax.ops import timesteps
from udp_jax.protections.adaptive import adapted
from udp_jax.protections.base import Protection, over_batches, pgd, sign_descent
from udp_jax.protections.maxmin import of_theta
from udp_jax.training import Batch, TrainState

WITH_TEXT = "denoiser_and_text"


class Surrogate(NamedTuple):
  """What is fine-tuned, and how.

  Attributes:
    trainable: theta of the attacked model's parameters.
    tx: the optimiser.
    steps: (key, state, data, delta, params) -> (state, losses (train_steps,)): optimiser steps on
      pictures + delta, or on the clean ones where delta is None.
  """

  trainable: Trainable
  tx: optax.GradientTransformation
  steps: Callable[..., tuple[TrainState, jax.Array]]

  def init(self, key: jax.Array, params: Params) -> TrainState:
    """A fresh state at the attacked model's parameters (copied: states are donated)."""
    return training.init_state(self.trainable.init(key, params), self.tx)


def fine_tuned(
  model: DiffusionModel,
  *,
  train_steps: int,
  learning_rate: float,
  weight_decay: float,
  clip_norm: float,
  trains: str,
  rank: int,
) -> Surrogate:
  """A surrogate that learns the denoising loss of `model`.

  Args:
    model: the attacked model.
    train_steps: of one call of `steps`.
    learning_rate: of AdamW.
    weight_decay: of AdamW.
    clip_norm: global norm at which the gradient is clipped.
    trains: "denoiser", "lora", "cross_attention" (`trainable.by_name`), or "denoiser_and_text": the
      text encoder too, for which `Batch.cond` must be token ids.
    rank: of the factors of "lora".

  Raises:
    ConfigError: an unknown part to train.
  """
  if trains == WITH_TEXT:
    parts = (trainable_lib.part("unet"), trainable_lib.part("text_encoder"))
    trainable = trainable_lib.joined(*parts)
  else:
    trainable = trainable_lib.by_name(trains, rank=rank)
  tx = optax.chain(
    optax.clip_by_global_norm(clip_norm), optax.adamw(learning_rate, weight_decay=weight_decay)
  )
  objective = objectives.denoising(model, timesteps.uniform(model.schedule.num_steps), dropout=True)

  def steps(
    key: jax.Array, state: TrainState, data: Batch, delta: jax.Array | None, params: Params
  ) -> tuple[TrainState, jax.Array]:
    update = training.make_update(of_theta(objective, trainable, params), tx)
    return training.train_steps(update, key, state, data, train_steps, delta=delta)

  return Surrogate(trainable, tx, steps)


def climbing(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  perturb_steps: int,
  start: str,
  transforms: str,
  consistency_weight: float,
) -> Protection:
  """Sign steps of delta up the denoising loss of whatever parameters it is given.

  Args:
    model: the attacked model.
    radius: L-inf budget on the [0, 1] scale.
    step_size: on the [0, 1] scale.
    perturb_steps: of every picture in one update.
    start: of delta: "zero", "uniform" or "sign".
    transforms: see `adaptive`.
    consistency_weight: see `adaptive`.

  Raises:
    ConfigError: an option that cannot be used.
  """
  probs = timesteps.uniform(model.schedule.num_steps)
  objective = adapted(
    model,
    objectives.negate(objectives.denoising(model, probs)),
    transforms=transforms,
    consistency_weight=consistency_weight,
  )
  constraint = constraints.linf(radius, start=start)
  inner = pgd(objective, constraint, sign_descent(step_size))
  return over_batches(inner, num_steps=perturb_steps, hold=model.hold)


def attacked(surrogate: Surrogate, theta: Theta, params: Params) -> Params:
  """The parameters that delta is moved against."""
  return surrogate.trainable.merge(theta, params)
