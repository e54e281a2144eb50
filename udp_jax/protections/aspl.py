"""ASPL: alternates surrogate and perturbation, and looks ahead by training on clean pictures.

Alternating surrogate and perturbation learning, Anti-DreamBooth (Le et al. 2023, arXiv:2303.15433).
In each round a copy of the surrogate trains on set A (clean pictures of the subject), delta ascends
the copy's denoising loss, the copy is discarded, and the surrogate trains on the protected
pictures. Published on [-1, 1]: radius 0.05, steps 0.005, which are 6.4 and 0.64 of 255 levels; 50
rounds of 3 train and 6 perturb steps; AdamW at 5e-7 (the program's default is 5e-6) with a fresh
optimiser for each training; U-Net and text encoder are trained, without clipping. See `surrogates`
for the differences.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from udp_jax.data.batches import Batch
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.models.sampling import Sampling
from udp_jax.objectives.training import TrainState
from udp_jax.ops.keys import stream
from udp_jax.protections import surrogates
from udp_jax.protections.base import Info, PGDState, Protection, Rounds, divisible, taking
from udp_jax.protections.options import Adaptive, Game, Prior, Shift, Spectrum, Surrogate
from udp_jax.protections.surrogates import Learner


class ASPLState(NamedTuple):
  """The perturbations, the surrogate between two trainings, and class pictures."""

  inner: PGDState
  surrogate: TrainState
  round: jax.Array
  class_images: jax.Array | None

  @property
  def delta(self) -> jax.Array:
    """(num_batches, B, H, W, C)."""
    return self.inner.delta


def aspl(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  game: Annotated[Game, surrogates.GAME] = Game(train_steps=3, perturb_steps=6, learning_rate=5e-7),
  surrogate: Annotated[Surrogate, surrogates.SURROGATE] = Surrogate(),
  prior: Prior = Prior(),
  sampling: Annotated[Sampling, surrogates.SAMPLING] = Sampling(),
  adaptive: Adaptive = Adaptive(),
  spectrum: Spectrum = Spectrum(),
  shift: Shift = Shift(),
  clean_set: str = "",
) -> Protection:
  """Each round trains a copy on clean pictures, perturbs, and trains on protected pictures.

  `Info.train_loss` is the loss of the surrogate, not of its copies.

  Args:
    model: the attacked model; `init` and `update` need its trained parameters.
    radius: L-inf budget on the [0, 1] scale (published: 6.4 / 255).
    step_size: length of a sign step on the [0, 1] scale (published: 0.64 / 255, 50 rounds of 6).
    game: steps in a round, the start of delta, and the surrogate's AdamW. The copy takes
      `train_steps` on clean pictures, and the surrogate as many on protected ones.
    surrogate: the part of the model that is trained; published: "denoiser_and_text".
    prior: the class that the surrogate must not forget (published: weight 1).
    sampling: how the model draws the class pictures.
    adaptive: transforms, draws and consistency of the perturb steps.
    spectrum: the band of frequencies of delta; a sign step moves it by `step_size` in the mean.
    shift: the target shift of the perturb steps; published as an option.
    clean_set: source of set A, further pictures of the subject (`surrogates.clean_pictures`); ""
      takes the protected ones before protection. Configs give `data.clean_set` once for all rows.

  Raises:
    ConfigError: an option cannot be used.
    MissingDataError, BadDataError: the clean set, or the target's file, is missing or damaged.

  >>> from udp_jax.models import toy
  >>> game = Game(train_steps=3, perturb_steps=6, learning_rate=5e-6)
  >>> method = aspl(toy.on_latents(), radius=8 / 255, step_size=1 / 255, game=game)
  >>> method.trains, method.perturb_steps
  (3, 6)
  """
  surrogates.check("aspl", game, surrogate, sampling)
  perturb = surrogates.climbing(model, radius, step_size, game, adaptive, shift, spectrum)
  preserved = surrogates.preserved(model, prior, sampling)
  pictures = surrogates.clean_pictures(clean_set, model)

  def made(clean: jax.Array | None, rounds: Rounds) -> Protection:
    training = dataclasses.replace(game, train_steps=rounds.train_steps)
    learner = surrogates.fine_tuned(model, training, surrogate, preserved)
    return alternating(learner, perturb, clean)

  rounds = Rounds(game.train_steps, game.perturb_steps)
  if pictures is None:
    return divisible(partial(made, None), rounds)
  return taking(lambda clean: divisible(partial(made, clean), rounds), pictures)


def alternating(
  learner: Learner, perturb: Protection, clean: jax.Array | None = None, *, ahead: bool = True
) -> Protection:
  """Rounds that move the perturbations against a surrogate, then train it on protected pictures.

  Args:
    learner: how the surrogate is trained, with a fresh optimiser in every round.
    perturb: the steps of the pictures, for the parameters that it is given.
    clean: set A, or None (`surrogates.clean_pictures`).
    ahead: whether a copy of the surrogate, trained on clean pictures first, is attacked (ASPL);
      otherwise the surrogate itself (ACE).

  >>> from udp_jax.models import toy
  >>> from udp_jax.objectives.latent import latent_distance
  >>> from udp_jax.protections.base import over_batches, pgd, sign_descent
  >>> from udp_jax.protections.constraints import linf
  >>> model = toy.on_latents()
  >>> step = pgd(latent_distance(model, None), linf(0.1), sign_descent(0.01))
  >>> learner = surrogates.fine_tuned(model, Game(train_steps=2), Surrogate())
  >>> alternating(learner, over_batches(step, num_steps=3), ahead=False).perturb_steps
  3
  """

  def init(key: jax.Array, data: Batch, params: Params) -> ASPLState:
    # Each training has a fresh optimiser, so no optimiser state is kept between rounds.
    fresh = learner.init(stream(key, "surrogate"), params)._replace(opt_state=())
    deltas = perturb.init(stream(key, "start"), data, params)
    class_images = learner.class_images(key, data, params)
    return ASPLState(deltas, fresh, jnp.zeros((), jnp.int32), class_images)

  def update(key: jax.Array, state: ASPLState, data: Batch, params: Params, phase=None):
    del phase  # Rounds have no parts: the copy would have to be kept between them.
    kept = state.surrogate._replace(opt_state=learner.tx.init(state.surrogate.params))
    of_class = state.class_images
    copy = kept
    if ahead:
      seen = data if clean is None else surrogates.clean_batches(clean, data)
      copy, _ = learner.steps(stream(key, "copy"), kept, seen, None, params, of_class)
    target = surrogates.attacked(learner, copy.params, params)
    deltas, info = perturb.update(stream(key, "perturb"), state.inner, data, target)
    trained, train_loss = learner.steps(
      stream(key, "train"), kept, data, deltas.delta, params, of_class
    )
    trained = trained._replace(opt_state=())
    done = ASPLState(deltas, trained, state.round + 1, of_class)
    return done, Info(info.loss, train_loss)

  return Protection(init, update, needs_params=True, perturb_steps=perturb.perturb_steps)
