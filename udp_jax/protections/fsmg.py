"""FSMG: the max step against a surrogate that was fine-tuned once on clean pictures.

Fully-trained surrogate model guidance, Anti-DreamBooth (Le et al. 2023, arXiv:2303.15433).
Published on [-1, 1]: radius 0.05, steps 0.005, which are 6.4 and 0.64 of 255 levels, 100 steps; the
surrogate trains for 1000 steps with AdamW at 5e-7 (5e-6 is the program's default), U-Net and text
encoder, on set A: pictures of the subject that are not protected. See `surrogates` for the
differences.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from udp_jax.data.batches import Batch
from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.models.sampling import Sampling
from udp_jax.objectives.training import TrainState
from udp_jax.ops.control import run_if
from udp_jax.ops.keys import stream
from udp_jax.protections import surrogates
from udp_jax.protections.base import Info, PGDState, Protection, Rounds, divisible, taking
from udp_jax.protections.options import Adaptive, Game, Prior, Shift, Spectrum, Surrogate
from udp_jax.protections.surrogates import Learner

# Fields of `Game` that this method uses.
GAME = (*surrogates.GAME, "warmup_rounds")


class FSMGState(NamedTuple):
  """The perturbations, the surrogate, its losses in the last training round, and class pictures."""

  inner: PGDState
  surrogate: TrainState
  train_loss: jax.Array
  round: jax.Array
  class_images: jax.Array | None

  @property
  def delta(self) -> jax.Array:
    """(num_batches, B, H, W, C)."""
    return self.inner.delta


def fsmg(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  game: Annotated[Game, GAME] = Game(
    train_steps=1000, perturb_steps=1, learning_rate=5e-7, warmup_rounds=1
  ),
  surrogate: Annotated[Surrogate, surrogates.SURROGATE] = Surrogate(),
  prior: Prior = Prior(),
  sampling: Annotated[Sampling, surrogates.SAMPLING] = Sampling(),
  adaptive: Adaptive = Adaptive(),
  spectrum: Spectrum = Spectrum(),
  shift: Shift = Shift(),
  clean_set: str = "",
) -> Protection:
  """Fine-tunes a surrogate in the first rounds, then attacks the fixed surrogate.

  In later rounds, `Info.train_loss` is that of the last round that trained.

  Args:
    model: the attacked model; `init` and `update` need its trained parameters.
    radius: L-inf budget on the [0, 1] scale (published: 6.4 / 255).
    step_size: length of a sign step on the [0, 1] scale (published: 0.64 / 255, 100 steps).
    game: steps in a round, the start of delta, and the surrogate's AdamW. The first
      `warmup_rounds` only train, the others only perturb; `num_rounds` must be larger.
      Published: 1000 train steps in total. Unlike one long round, several can be interrupted.
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
  >>> method = fsmg(toy.on_latents(), radius=8 / 255, step_size=1 / 255)
  >>> visit, train_visits = method.divided(4)  # Streamed through four shards.
  >>> visit.trains, train_visits
  (250, 4)
  """
  surrogates.check("fsmg", game, surrogate, sampling, taken=GAME)
  if game.warmup_rounds < 1:
    raise ConfigError("fsmg: without a warm-up round the surrogate is the model itself: use advdm")
  perturb = surrogates.climbing(model, radius, step_size, game, adaptive, shift, spectrum)
  preserved = surrogates.preserved(model, prior, sampling)
  pictures = surrogates.clean_pictures(clean_set, model)

  def made(clean: jax.Array | None, rounds: Rounds) -> Protection:
    training = dataclasses.replace(game, train_steps=rounds.train_steps)
    learner = surrogates.fine_tuned(model, training, surrogate, preserved)
    return _first_and_then(learner, perturb, rounds, clean)

  rounds = Rounds(game.train_steps, game.perturb_steps, game.warmup_rounds)
  if pictures is None:
    return divisible(partial(made, None), rounds)
  return taking(lambda clean: divisible(partial(made, clean), rounds), pictures)


def _first_and_then(
  learner: Learner, perturb: Protection, rounds: Rounds, clean: jax.Array | None
) -> Protection:
  """The first rounds train the surrogate, the later ones move the perturbations."""

  def init(key: jax.Array, data: Batch, params: Params) -> FSMGState:
    trained = learner.init(stream(key, "surrogate"), params)
    deltas = perturb.init(stream(key, "start"), data, params)
    class_images = learner.class_images(key, data, params)
    losses, at_start = jnp.zeros((rounds.train_steps,)), jnp.zeros((), jnp.int32)
    return FSMGState(deltas, trained, losses, at_start, class_images)

  def update(key: jax.Array, state: FSMGState, data: Batch, params: Params, phase=None):
    del phase  # A round either trains or perturbs.
    warm = state.round >= rounds.warmup_rounds

    def fine_tuned(carry):
      key_train = stream(key, "train")
      seen = data if clean is None else surrogates.clean_batches(clean, data)
      return learner.steps(key_train, carry[0], seen, None, params, state.class_images)

    trained, train_loss = run_if(~warm, fine_tuned, (state.surrogate, state.train_loss))
    target = surrogates.attacked(learner, trained.params, params)

    def perturbed(carry):
      deltas, info = perturb.update(stream(key, "perturb"), carry[0], data, target)
      return deltas, info.loss

    deltas, loss = run_if(warm, perturbed, (state.inner, jnp.full(data.ids.shape, jnp.nan)))
    done = FSMGState(deltas, trained, train_loss, state.round + 1, state.class_images)
    return done, Info(loss, train_loss)

  return Protection(init, update, needs_params=True, perturb_steps=perturb.perturb_steps)
