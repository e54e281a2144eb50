"""Surrogates that are fine-tuned from the attacked model, shared by FSMG and ASPL.

They train as in VinAIResearch/Anti-DreamBooth: AdamW, uniform timesteps, and with a `prior_weight`
DreamBooth's prior preservation (theirs: weight 1, 200 class pictures, which the model makes before
it is trained). As there, delta maximises only the denoising loss of its own pictures, minus a
target shift if there is a target. Differences:

* A step trains on a batch of pictures (theirs: on one) and as many class pictures.
* Set A, the clean pictures, is `clean_set`; without one, the protected pictures before protection
  (theirs: always other pictures of the same person).
* `clip_norm` clips by the gradient's norm; 0 clips nothing. FSMG's surrogate is clipped to 1 there;
  ASPL's code means to, but hands the clipping an iterator that its optimiser has used up, so
  nothing is clipped.
* Trained parameters are float32. ASPL's are bfloat16 there, where an AdamW step of 5e-7 is lost on
  every weight above 2.4e-4: about 0.45 % of a network's weights move in 3 steps, so that its
  surrogate hardly differs from the model that it starts from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from udp_jax import registry
from udp_jax.data import batches, sources
from udp_jax.data.batches import Batch
from udp_jax.errors import ConfigError
from udp_jax.models import trainable as trainable_lib
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.models.sampling import Sampling, make_sample
from udp_jax.models.trainable import Theta, Trainable
from udp_jax.objectives import clipping, target_shift, training
from udp_jax.objectives.base import negate, weighted
from udp_jax.objectives.denoising import denoising
from udp_jax.objectives.training import TrainState, of_theta
from udp_jax.ops import timesteps
from udp_jax.ops.image import quantise
from udp_jax.ops.keys import stream
from udp_jax.protections import constraints, targets
from udp_jax.protections.adaptive import adapted
from udp_jax.protections.base import Protection, over_batches, pgd, sign_descent
from udp_jax.protections.options import Adaptive, Game, Prior, Shift, Spectrum, Surrogate

WITH_TEXT = "denoiser_and_text"
# Fields of the option groups that FSMG and ASPL use.
GAME = ("train_steps", "perturb_steps", "start", "learning_rate", "clip_norm")
SURROGATE = ("trains", "rank", "weight_decay")
SAMPLING = ("sample_steps", "guidance_scale", "uncond_ids")
# First ids of set A and of class pictures in random draws, beyond the ids of any data set.
_FIRST_CLEAN_ID = 2**29
_FIRST_CLASS_ID = 2**30


def check(
  what: str, game: Game, surrogate: Surrogate, sampling: Sampling, *, taken: Sequence[str] = GAME
) -> None:
  """Raises ConfigError for a field that is set although the method `what` does not use it.

  >>> check("aspl", Game(joint_gradients=True), Surrogate(), Sampling())
  Traceback (most recent call last):
  udp_jax.errors.ConfigError: aspl has no use for Game.joint_gradients; it takes: train_steps, ...
  """
  registry.only(what, game, taken)
  registry.only(what, surrogate, SURROGATE)
  registry.only(what, sampling, SAMPLING)


class Preserved(NamedTuple):
  """The class that a surrogate must not forget (Ruiz et al., arXiv:2208.12242, equation 2).

  Attributes:
    weight: weight of the class pictures' loss, lambda in the paper.
    make: (key, lanes, params) -> uint8 (rows, lanes, H, W, 3), class pictures from the model.
    cond_like: (params, cond) -> the class's prompt (1, ...): token ids if cond (..., L) is token
      ids, else embeddings; None for models without prompts.
  """

  weight: float
  make: Callable[[jax.Array, int, Params], jax.Array]
  cond_like: Callable[[Params, Any], jax.Array | None]


def preserved(model: DiffusionModel, prior: Prior, sampling: Sampling) -> Preserved | None:
  """Builds the prior of a model from its options; None if `prior_weight` is 0.

  Args:
    model: the attacked model.
    prior: the class, its weight, and the number of its pictures.
    sampling: how the model draws the pictures: `sample_steps` of DDIM, `guidance_scale`,
      `uncond_ids`.

  Raises:
    ConfigError: the weight is negative, the number of pictures is 0, or prompts are missing.

  >>> from udp_jax.models import toy
  >>> prior = Prior(prior_weight=1.0, num_class_images=3)
  >>> kept = preserved(toy.on_pixels(), prior, Sampling(sample_steps=2))
  >>> kept.weight, preserved(toy.on_pixels(), Prior(), Sampling())
  (1.0, None)
  """
  weight, count = prior.prior_weight, prior.num_class_images
  if weight < 0 or (weight and count < 1):
    raise ConfigError(f"prior_weight is {weight} with {count} class pictures: at least 0, and 1")
  if not weight:
    return None
  if model.embed is not None and (
    prior.class_ids is None or (sampling.guidance_scale != 1.0 and sampling.uncond_ids is None)
  ):
    raise ConfigError("prior_weight needs class_prompt (class_ids), and a model with a tokenizer")
  sample = make_sample(model, dataclasses.replace(sampling, scheduler=targets.SCHEDULER))
  cond, uncond = (
    None if ids is None else np.asarray(ids, np.int32)[None]
    for ids in (prior.class_ids, sampling.uncond_ids)
  )

  def make(key: jax.Array, lanes: int, params: Params) -> jax.Array:
    def one_batch(number: jax.Array) -> jax.Array:
      return quantise(sample(jax.random.fold_in(key, number), params, lanes, cond, uncond))

    return jax.lax.map(one_batch, jnp.arange(-(-count // lanes)))

  def cond_like(params: Params, given: Any) -> jax.Array | None:
    if given is None:
      return None
    if isinstance(given, dict) or cond is None:
      raise ConfigError("prior preservation is for models that are told of a text, and no more")
    if jnp.issubdtype(given.dtype, jnp.integer):
      return jnp.asarray(cond)
    assert model.embed is not None  # Otherwise there could be no embeddings.
    return model.embed(params, jnp.asarray(cond))

  return Preserved(weight, make, cond_like)


class Learner(NamedTuple):
  """The trained part of a surrogate, and how it is trained.

  Attributes:
    trainable: extracts theta from the attacked model's parameters and merges it back.
    tx: the optimiser.
    steps: (key, state, data, delta, params, class_images=None) -> (state, losses (train_steps,)):
      optimiser steps on pictures + delta, or on clean pictures if delta is None; class pictures,
      if there are any, join each batch.
    prior: the class that must not be forgotten, or None.
  """

  trainable: Trainable
  tx: optax.GradientTransformation
  steps: Callable[..., tuple[TrainState, jax.Array]]
  prior: Preserved | None

  def init(self, key: jax.Array, params: Params) -> TrainState:
    """Returns a new state with a copy of the attacked model's parameters (states are donated)."""
    return training.init_state(self.trainable.init(key, params), self.tx)

  def class_images(self, key: jax.Array, data: Batch, params: Params) -> jax.Array | None:
    """Returns class pictures from the attacked model, uint8 (rows, B, H, W, 3); None without prior.

    Args:
      key: the root key of the protection.
      data: pictures, leaves (num_batches, B, ...).
      params: parameters of the attacked model.
    """
    if self.prior is None:
      return None
    return self.prior.make(stream(key, "class pictures"), data.ids.shape[1], params)


def fine_tuned(
  model: DiffusionModel, game: Game, surrogate: Surrogate, prior: Preserved | None = None
) -> Learner:
  """Makes a learner that fine-tunes a surrogate by the denoising loss of its pictures.

  Args:
    model: the attacked model; the surrogate starts from its parameters.
    game: `train_steps` of one call of `steps`, `learning_rate` and `clip_norm` of its AdamW.
    surrogate: the part of the model that is trained, and `weight_decay`. "denoiser_and_text" also
      trains the text encoder, for which `Batch.cond` must be token ids.
    prior: the class that the surrogate must not forget, from `preserved`.

  Raises:
    ConfigError: the part to train is unknown.

  >>> from udp_jax.models import toy
  >>> model = toy.on_pixels()
  >>> learner = fine_tuned(model, Game(train_steps=3), Surrogate())
  >>> state = learner.init(jax.random.key(0), model.init(jax.random.key(1)))
  >>> int(state.step), sorted(state.params)
  (0, ['log_spread', 'mean'])
  """
  if surrogate.trains == WITH_TEXT:
    parts = (trainable_lib.part("unet"), trainable_lib.part("text_encoder"))
    trainable = trainable_lib.joined(*parts)
  else:
    trainable = trainable_lib.by_name(surrogate.trains, rank=surrogate.rank)
  tx = optax.chain(
    clipping.clip_by_global_norm(game.clip_norm),
    optax.adamw(game.learning_rate, weight_decay=surrogate.weight_decay),
  )
  objective = denoising(model, timesteps.uniform(model.schedule.num_steps), dropout=True)
  if prior is not None:
    # A step averages over its weights 1 and prior.weight; their sum restores equation 2.
    objective = weighted((1.0 + prior.weight, objective))

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
    return training.train_steps(update, key, state, data, game.train_steps, delta=delta)

  return Learner(trainable, tx, steps, prior)


def _beside_class(
  update: Callable, key: jax.Array, class_images: Any, class_cond: Any, weight: float
) -> Callable:
  """Returns a training step whose batch gets one class picture beside each of its own.

  Class pictures alternate with the others, so that batches stay on their devices.
  """
  rows, lanes = class_images.shape[:2]

  def woven(own: Any, of_class: Any) -> jax.Array:
    of_class = jnp.broadcast_to(of_class, own.shape)
    return jnp.stack([own, of_class], axis=1).reshape(2 * len(own), *own.shape[1:])

  def step(draws: jax.Array, state: TrainState, batch: Batch, delta: jax.Array | None):
    chosen = batches.take_rows(key, state.step, rows, lanes)
    both = Batch(
      images=woven(batch.images, batches.take(class_images, chosen)),
      ids=woven(batch.ids, _FIRST_CLASS_ID + chosen * lanes + jnp.arange(lanes)),
      # Padding gets no class picture either.
      weight=woven(batch.weight, weight * batch.weight),
      cond=None if class_cond is None else woven(batch.cond, class_cond),
    )
    moved = None if delta is None else woven(delta, jnp.zeros(()))
    return update(draws, state, both, moved)

  return step


def climbing(
  model: DiffusionModel,
  radius: float,
  step_size: float,
  game: Game,
  adaptive: Adaptive,
  shift: Shift = Shift(),
  spectrum: Spectrum = Spectrum(),
) -> Protection:
  """Sign steps of delta that raise the denoising loss of the given parameters.

  Args:
    model: the attacked model.
    radius: L-inf budget on the [0, 1] scale.
    step_size: length of a sign step on the [0, 1] scale.
    game: `perturb_steps` of each picture in one update, and the `start` of delta.
    adaptive: transforms, draws and consistency.
    shift: the target shift.
    spectrum: the band of frequencies of delta.

  Raises:
    ConfigError: an option cannot be used.
    MissingDataError, BadDataError: the target's file is missing or damaged.

  >>> from udp_jax.models import toy
  >>> climbing(toy.on_pixels(), 8 / 255, 1 / 255, Game(perturb_steps=6), Adaptive()).perturb_steps
  6
  """
  probs = timesteps.uniform(model.schedule.num_steps)
  if shift.target:
    picture = targets.picture(shift.target, model.image_shape)
    raised = target_shift.shifted(model, probs, picture, shift.target_weight)
  else:
    raised = denoising(model, probs)
  objective = adapted(model, negate(raised), adaptive)
  constraint = constraints.linf(radius, start=game.start, spectrum=spectrum)
  inner = pgd(objective, constraint, sign_descent(step_size))
  return over_batches(inner, num_steps=game.perturb_steps, hold=model.hold)


def clean_pictures(clean_set: str, model: DiffusionModel) -> np.ndarray | None:
  """Loads set A, further pictures of the subject: uint8 (N, H, W, 3); None for "".

  Args:
    clean_set: a source of `data.sources`, whose pictures are centre-cropped and resized to the
      model's size.
    model: the attacked model.

  Raises:
    MissingDataError, BadDataError, ConfigError: as `data.sources.load`.

  >>> from udp_jax.models import toy
  >>> clean_pictures("", toy.on_pixels()) is None
  True
  """
  if not clean_set:
    return None
  return sources.load(clean_set, image_size=model.image_shape[0]).images


def clean_batches(clean: jax.Array | np.ndarray, data: Batch) -> Batch:
  """Arranges set A in as many lanes as `data` has; a picture gets the prompt of its place there.

  Args:
    clean: uint8 (N, H, W, 3), from `clean_pictures`.
    data: the protected pictures, leaves (num_batches, B, ...). Their prompts are one and the same
      in the published code.

  >>> data = batches.make_batches(np.zeros((4, 8, 8, 3), np.uint8), 2)
  >>> clean_batches(np.ones((3, 8, 8, 3), np.uint8), data).weight.tolist()
  [[1.0, 1.0], [1.0, 0.0]]
  """
  num_batches, lanes = data.ids.shape[:2]
  rows = -(-len(clean) // lanes)
  places = np.arange(rows * lanes).reshape(rows, lanes)
  return Batch(
    images=jnp.asarray(clean)[places % len(clean)],
    ids=jnp.asarray(_FIRST_CLEAN_ID + places),
    weight=jnp.asarray(places < max(len(clean), lanes), jnp.float32),
    cond=jax.tree.map(lambda leaf: jnp.asarray(leaf)[np.arange(rows) % num_batches], data.cond),
  )


def attacked(learner: Learner, theta: Theta, params: Params) -> Params:
  """Returns the parameters that delta attacks.

  >>> from udp_jax.models import toy
  >>> learner = fine_tuned(toy.on_pixels(), Game(), Surrogate())
  >>> attacked(learner, {"mean": 1.0}, {"mean": 0.0})
  {'mean': 1.0}
  """
  return learner.trainable.merge(theta, params)
