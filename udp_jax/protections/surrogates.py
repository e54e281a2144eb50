"""Surrogates that are fine-tuned from the attacked model: what FSMG and ASPL share.

As VinAIResearch/Anti-DreamBooth trains them: AdamW, gradient clipped to a norm of 1, timesteps
uniform, and with a `prior_weight` DreamBooth's prior preservation (theirs: weight 1, 200 class
pictures, which the model makes before it is trained). As there, delta is moved against the
denoising loss of its own pictures alone. Differences: a step trains on a batch of pictures (theirs:
on one) and as many of the class, and the clean pictures are the protected ones before protection
(theirs: others of the same person).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from udp_jax import constraints, objectives, training
from udp_jax.errors import ConfigError
from udp_jax.models import trainable as trainable_lib
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.models.trainable import Theta, Trainable
from udp_jax.ops import timesteps
from udp_jax.ops.image import quantise
from udp_jax.protections import targets
from udp_jax.protections.adaptive import adapted
from udp_jax.protections.base import Protection, over_batches, pgd, sign_descent
from udp_jax.protections.maxmin import of_theta
from udp_jax.randomness import stream
from udp_jax.threats.finetuning import make_sample
from udp_jax.training import Batch, TrainState

WITH_TEXT = "denoiser_and_text"
# Numbers of class pictures, for their draws: no data set reaches as far.
_FIRST_CLASS_ID = 2**30


class Prior(NamedTuple):
  """The class that a surrogate must not unlearn (Ruiz et al., arXiv:2208.12242, equation 2).

  Attributes:
    weight: of the class pictures' loss, lambda in the paper.
    make: (key, lanes, params) -> uint8 (rows, lanes, H, W, 3), what the model makes of the class.
    cond_like: (params, cond) -> the class's prompt (1, ...), token ids where cond (..., L) is, else
      embeddings; None for models without prompts.
  """

  weight: float
  make: Callable[[jax.Array, int, Params], jax.Array]
  cond_like: Callable[[Params, Any], jax.Array | None]


def preserved(
  model: DiffusionModel,
  *,
  prior_weight: float,
  class_ids: Sequence[int] | None,
  num_class_images: int,
  sample_steps: int,
  guidance_scale: float,
  uncond_ids: Sequence[int] | None,
) -> Prior | None:
  """The prior of these options; None where `prior_weight` is 0.

  Args:
    model: the attacked model.
    prior_weight: of the class pictures' loss; published: 1.
    class_ids: (L,) token ids of the class's prompt; None for models without prompts.
    num_class_images: how many are made, rounded up to whole batches; published: 200.
    sample_steps: of DDIM, for each.
    guidance_scale: of classifier-free guidance; 1 for none.
    uncond_ids: (L,) token ids of the empty prompt, which guidance needs.

  Raises:
    ConfigError: a negative weight, no pictures, or prompts that are missing.
  """
  if prior_weight < 0 or (prior_weight and num_class_images < 1):
    raise ConfigError(
      f"prior_weight is {prior_weight} with {num_class_images} class pictures: at least 0, and 1"
    )
  if not prior_weight:
    return None
  if model.embed is not None and (
    class_ids is None or (guidance_scale != 1.0 and uncond_ids is None)
  ):
    raise ConfigError("prior_weight needs class_prompt (class_ids), and a model with a tokenizer")
  sample = make_sample(
    model,
    sample_steps=sample_steps,
    guidance_scale=guidance_scale,
    scheduler=targets.SCHEDULER,
  )
  cond, uncond = (
    None if ids is None else np.asarray(ids, np.int32)[None] for ids in (class_ids, uncond_ids)
  )

  def make(key: jax.Array, lanes: int, params: Params) -> jax.Array:
    def one_batch(number: jax.Array) -> jax.Array:
      return quantise(sample(jax.random.fold_in(key, number), params, lanes, cond, uncond))

    return jax.lax.map(one_batch, jnp.arange(-(-num_class_images // lanes)))

  def cond_like(params: Params, given: Any) -> jax.Array | None:
    if given is None:
      return None
    if isinstance(given, dict) or cond is None:
      raise ConfigError("prior preservation is for models that are told of a text, and no more")
    if jnp.issubdtype(given.dtype, jnp.integer):
      return jnp.asarray(cond)
    assert model.embed is not None  # Else nobody could have made embeddings.
    return model.embed(params, jnp.asarray(cond))

  return Prior(prior_weight, make, cond_like)


class Surrogate(NamedTuple):
  """What is fine-tuned, and how.

  Attributes:
    trainable: theta of the attacked model's parameters.
    tx: the optimiser.
    steps: (key, state, data, delta, params, class_images=None) -> (state, losses (train_steps,)):
      optimiser steps on pictures + delta, or on the clean ones where delta is None, with those of
      the class beside them where there are any.
    prior: what is preserved, or None.
  """

  trainable: Trainable
  tx: optax.GradientTransformation
  steps: Callable[..., tuple[TrainState, jax.Array]]
  prior: Prior | None

  def init(self, key: jax.Array, params: Params) -> TrainState:
    """A fresh state at the attacked model's parameters (copied: states are donated)."""
    return training.init_state(self.trainable.init(key, params), self.tx)

  def class_images(self, key: jax.Array, data: Batch, params: Params) -> jax.Array | None:
    """Pictures of the class by the attacked model, uint8 (rows, B, H, W, 3), where it has a prior.

    Args:
      key: of the protection.
      data: leaves (num_batches, B, ...).
      params: of the attacked model.
    """
    if self.prior is None:
      return None
    return self.prior.make(stream(key, "class pictures"), data.ids.shape[1], params)


def fine_tuned(
  model: DiffusionModel,
  *,
  train_steps: int,
  learning_rate: float,
  weight_decay: float,
  clip_norm: float,
  trains: str,
  rank: int,
  prior: Prior | None = None,
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
    prior: of `preserved`.

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
  if prior is not None:
    # The mean over a step's weights 1 and prior.weight, times their sum: equation 2.
    objective = objectives.weighted((1.0 + prior.weight, objective))

  def steps(
    key: jax.Array,
    state: TrainState,
    data: Batch,
    delta: jax.Array | None,
    params: Params,
    class_images: jax.Array | None = None,
  ) -> tuple[TrainState, jax.Array]:
    update = training.make_update(of_theta(objective, trainable, params), tx)
    if prior is not None:
      cond = prior.cond_like(params, data.cond)
      update = _beside_class(update, stream(key, "class"), class_images, cond, prior.weight)
    return training.train_steps(update, key, state, data, train_steps, delta=delta)

  return Surrogate(trainable, tx, steps, prior)


def _beside_class(
  update: Callable, key: jax.Array, class_images: Any, class_cond: Any, weight: float
) -> Callable:
  """A training step whose batch gets a class picture beside each of its own.

  In turns and not in halves: a batch over devices stays where it is.
  """
  rows, lanes = class_images.shape[:2]

  def woven(own: Any, of_class: Any) -> jax.Array:
    of_class = jnp.broadcast_to(of_class, own.shape)
    return jnp.stack([own, of_class], axis=1).reshape(2 * len(own), *own.shape[1:])

  def step(draws: jax.Array, state: TrainState, batch: Batch, delta: jax.Array | None):
    chosen = training.take_rows(key, state.step, rows, lanes)
    both = Batch(
      images=woven(batch.images, training.take(class_images, chosen)),
      ids=woven(batch.ids, _FIRST_CLASS_ID + chosen * lanes + jnp.arange(lanes)),
      # Padding has no picture of the class either.
      weight=woven(batch.weight, weight * batch.weight),
      cond=None if class_cond is None else woven(batch.cond, class_cond),
    )
    moved = None if delta is None else woven(delta, jnp.zeros(()))
    return update(draws, state, both, moved)

  return step


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
