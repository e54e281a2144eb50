"""Shared parts of threats that fine-tune: the training of theta, and sampling with guidance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax

from udp_jax import registry
from udp_jax.data.batches import Batch
from udp_jax.errors import ConfigError
from udp_jax.models.base import Cond, DiffusionModel, Params
from udp_jax.models.sampling import Sampling, are_ids, make_sample
from udp_jax.models.trainable import Theta, Trainable
from udp_jax.objectives import clipping
from udp_jax.objectives import training as training_lib
from udp_jax.objectives.base import Objective, weighted
from udp_jax.objectives.denoising import denoising, flipped
from udp_jax.objectives.training import TrainState
from udp_jax.ops import timesteps
from udp_jax.ops.keys import split_each
from udp_jax.threats.base import Threat, frozen_params

DECAYS = ("constant", "cosine")
# Fields of `Sampling` that threats use; the empty prompt comes with each call.
SAMPLING = ("sample_steps", "sampler", "eta", "guidance_scale", "scheduler")


@dataclasses.dataclass(frozen=True)
class Training:
  """How a threat trains: options that threats share.

  Attributes:
    learning_rate: step size of Adam or AdamW after the warm-up.
    warmup_steps: optimiser steps of the linear warm-up from 0.
    decay: "constant", or "cosine" to 0 over the steps after the warm-up.
    weight_decay: weight decay of AdamW.
    clip_norm: global norm at which the gradient is clipped; 0 clips nothing.
    ema_decay: decay of the averaged theta; 0 keeps no average.
    flip: whether to flip pictures left to right half of the time.
  """

  learning_rate: float = 1e-4
  warmup_steps: int = 0
  decay: str = "constant"
  weight_decay: float = 1e-2
  clip_norm: float = 1.0
  ema_decay: float = 0.0
  flip: bool = False


def learning_rates(train_steps: int, training: Training) -> optax.Schedule:
  """Returns a linear warm-up from 0, then a constant rate, or a cosine to 0 over the rest.

  Args:
    train_steps: total number of optimiser steps.
    training: `learning_rate`, `warmup_steps` and `decay`.

  Raises:
    ConfigError: the decay is unknown.

  >>> rate = learning_rates(100, Training(learning_rate=0.5, warmup_steps=10, decay="cosine"))
  >>> [round(float(rate(step)), 3) for step in (0, 5, 10, 100)]
  [0.0, 0.25, 0.5, 0.0]
  """
  rate, warmup_steps, decay = training.learning_rate, training.warmup_steps, training.decay
  if decay not in DECAYS:
    raise ConfigError(f"unknown learning-rate decay {decay!r}; known: {', '.join(DECAYS)}")
  if decay == "constant":
    if not warmup_steps:
      return optax.constant_schedule(rate)
    return optax.warmup_constant_schedule(0.0, rate, warmup_steps)
  if not warmup_steps:
    return optax.cosine_decay_schedule(rate, max(1, train_steps))
  end = max(train_steps, warmup_steps + 1)
  return optax.warmup_cosine_decay_schedule(0.0, rate, warmup_steps, end)


def fine_tune(
  model: DiffusionModel,
  trainable: Trainable,
  *,
  train_steps: int,
  training: Training,
  sampling: Sampling,
  prior_weight: float = 0.0,
  trains_text: bool = False,
  save: Callable[[Path, Theta], Path] | None = None,
) -> Threat:
  """Makes a threat that trains theta of a model by the denoising loss (as diffusers' scripts do).

  It uses AdamW and uniform timesteps, and each step draws one of each picture's captions.

  Args:
    model: the model that is fine-tuned.
    trainable: extracts theta from the model's parameters and merges it back.
    train_steps: total number of optimiser steps.
    training: learning rate, warm-up, decays, clipping, averaging and flips.
    sampling: how the fine-tuned model is sampled from; the empty prompt comes with each call.
    prior_weight: weight of the class pictures: loss = subject_loss + prior_weight * class_loss.
    trains_text: whether theta includes the text side, so that prompts must be token ids.
    save: (folder, theta) -> path, writes the small file that PyTorch diffusers loads; None if the
      whole model has to be saved.

  Raises:
    ConfigError: the decay or the sampler is unknown, or sampling options cannot be used.

  >>> from udp_jax.models import toy
  >>> from udp_jax.models import trainable
  >>> how = {"training": Training(), "sampling": Sampling(sample_steps=10)}
  >>> fine_tune(toy.on_pixels(), trainable.whole(), train_steps=20, **how).train_steps
  20
  """
  registry.only("fine-tuning", sampling, SAMPLING)
  tx = optax.chain(
    clipping.clip_by_global_norm(training.clip_norm),
    optax.adamw(learning_rates(train_steps, training), weight_decay=training.weight_decay),
  )
  ema_decay = training.ema_decay
  uniform = timesteps.uniform(len(model.schedule.alphas_cumprod))
  objective = one_caption(denoising(model, uniform, dropout=True))
  objective = flipped(objective) if training.flip else objective
  if prior_weight:
    # A step averages over its weights 1 and prior_weight; their sum restores Ruiz et al., eq. 2.
    objective = weighted((1.0 + prior_weight, objective))

  def init(key: jax.Array, params: Params | None) -> TrainState:
    theta = trainable.init(key, frozen_params(params))
    return training_lib.init_state(theta, tx, ema=ema_decay > 0)

  def update(key: jax.Array, state: TrainState, data: Batch, num_steps: int, params=None):
    if trains_text and not are_ids(data.cond):
      raise ConfigError("this threat trains the text side: give token ids, not embeddings")

    def of_theta(theta: Theta, *rest: Any):
      return objective(trainable.merge(theta, frozen_params(params)), *rest)

    step = training_lib.make_update(of_theta, tx, ema_decay=ema_decay)
    return training_lib.train_steps(step, key, state, data, num_steps)

  def final(state: TrainState) -> Theta:
    return state.params if state.ema_params is None else state.ema_params

  return Threat(
    init=jax.jit(init),
    update=jax.jit(update, static_argnums=3, donate_argnums=1),
    sample=make_sample(model, sampling),
    final=final,
    train_steps=train_steps,
    trainable=trainable,
    needs_params=True,
    needs_token_ids=trains_text,
    prior_weight=prior_weight,
    save=save,
  )


def one_caption(objective: Objective) -> Objective:
  """Draws one of each picture's captions, token ids (B, K, L), and passes it to `objective`.

  >>> import jax.numpy as jnp
  >>> first = lambda params, images, cond, keys: (cond[:, 0], {})
  >>> captions = jnp.array([[[1, 9], [2, 9]]])  # Two of one picture.
  >>> keys = jax.random.split(jax.random.key(0), 1)
  >>> one_caption(first)(None, None, captions, keys)[0].tolist() in ([1], [2])
  True
  """

  def drawn(params: Params, images: jax.Array, cond: Cond, keys: jax.Array):
    if are_ids(cond) and cond.ndim == 3:
      key_caption, keys = split_each(keys, 2)
      number = jax.vmap(lambda key: jax.random.randint(key, (), 0, cond.shape[1]))(key_caption)
      cond = jax.vmap(lambda ids, i: ids[i])(cond, number)
    return objective(params, images, cond, keys)

  return drawn
