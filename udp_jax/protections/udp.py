"""UDP: unlearnable diffusion perturbations (Zhao et al. 2023, arXiv:2306.01902).

max over delta, |delta|_inf <= radius, of min over theta of
E_{x, t, noise} || noise - noise_theta(sqrt(abar_t) (x + delta) + sqrt(1 - abar_t) noise, t) ||^2,
solved by alternation: the surrogate learns the protected pictures, then delta raises its loss.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import numpy as np
import optax
from jax.typing import ArrayLike

from udp_jax import registry
from udp_jax.errors import ConfigError
from udp_jax.models import trainable as trainable_lib
from udp_jax.models.base import DiffusionModel
from udp_jax.objectives import clipping
from udp_jax.objectives.base import negate
from udp_jax.objectives.denoising import denoising
from udp_jax.ops import timesteps
from udp_jax.protections import constraints
from udp_jax.protections.adaptive import adapted
from udp_jax.protections.base import Protection, Rounds, divisible, pgd, sign_descent, taking
from udp_jax.protections.maxmin import bilevel, joint
from udp_jax.protections.options import Adaptive, Game, Spectrum, Surrogate

# Fields of `Surrogate` that udp and eudp use.
SURROGATE = ("trains", "rank", "restart_every")


def udp(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  game: Game = Game(),
  surrogate: Annotated[Surrogate, SURROGATE] = Surrogate(),
  adaptive: Adaptive = Adaptive(),
  spectrum: Spectrum = Spectrum(),
  probs: ArrayLike | None = None,
) -> Protection:
  """The bilevel loop with uniform timesteps.

  Args:
    model: class of the surrogate, trained from scratch unless `init` gets parameters.
    radius: L-inf budget on the [0, 1] scale.
    step_size: length of a sign step on the [0, 1] scale.
    game: steps in a round, the start of delta, and the surrogate's Adam.
    surrogate: the part of the model that is trained, and its restarts.
    adaptive: transforms, draws and consistency of the perturb steps.
    spectrum: the band of frequencies of delta; a sign step moves it by `step_size` in the mean.
    probs: (T,) distribution over the timesteps of the perturb steps; None for uniform, in configs
      also "measured". The surrogate trains on uniform timesteps, as an infringer does.

  Raises:
    ConfigError: an option does not work with joint steps, or the part to train is unknown.

  >>> from udp_jax.models import toy
  >>> method = udp(toy.on_pixels(), radius=8 / 255, step_size=1 / 255, game=Game(perturb_steps=2))
  >>> method.trains, method.perturb_steps, method.needs_params
  (60, 2, False)
  """
  registry.only("udp", surrogate, SURROGATE)
  trainable = trainable_lib.by_name(surrogate.trains, rank=surrogate.rank)
  uniform = timesteps.uniform(len(model.schedule.alphas_cumprod))
  constraint = constraints.linf(radius, start=game.start, spectrum=spectrum)
  ascent = sign_descent(step_size)
  tx = optax.chain(clipping.clip_by_global_norm(game.clip_norm), optax.adam(game.learning_rate))
  rounds = Rounds(game.train_steps, game.perturb_steps, game.warmup_rounds, surrogate.restart_every)
  if game.joint_gradients:
    if game.warmup_rounds or surrogate.restart_every:
      raise ConfigError("joint_gradients does not go with warmup_rounds or restart_every")
    if adaptive != Adaptive():
      raise ConfigError(
        "joint_gradients does not go with transforms or consistency_weight, nor with num_draws"
      )

  def jointly(probs: ArrayLike, rounds: Rounds) -> Protection:
    return joint(
      denoising(model, probs, dropout=True),
      tx,
      constraint,
      ascent,
      init_params=model.init,
      train_steps=rounds.train_steps,
      trainable=trainable,
    )

  def in_turns(probs: ArrayLike, rounds: Rounds) -> Protection:
    attacking = adapted(model, negate(denoising(model, probs)), adaptive)
    return bilevel(
      pgd(attacking, constraint, ascent),
      denoising(model, uniform, dropout=True),
      tx,
      rounds,
      init_params=model.init,
      hold=model.hold,
      trainable=trainable,
    )

  play = jointly if game.joint_gradients else in_turns
  # An argument of the compiled round, so that EUDP's program is UDP's.
  return taking(
    lambda probs: divisible(partial(play, probs), rounds),
    np.asarray(uniform if probs is None else probs, np.float32),
  )
