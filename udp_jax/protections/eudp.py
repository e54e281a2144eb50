"""EUDP: UDP with timesteps drawn from a distribution derived from the noise schedule.

delta reaches the network as sqrt(abar_t) delta beside sqrt(1 - abar_t) noise, so a step at a
timestep t where the noise hides delta is wasted. The family `ops.timesteps.schedule_power` is a
reconstruction from the paper's abstract (arXiv:2306.01902), not the authors' formula: the paper's
text was not at hand. On pixels (16x16, three seeds) (1, 0), (2, 0), the default, and (4, 0) are
level, and above the other (a, b) tried (experiments/results/training_sets.md); latents differ.
"""

from __future__ import annotations

from typing import Annotated

from jax.typing import ArrayLike

from udp_jax.models.base import DiffusionModel
from udp_jax.ops import timesteps
from udp_jax.protections.base import Protection
from udp_jax.protections.options import Adaptive, Game, Spectrum, Surrogate
from udp_jax.protections.udp import SURROGATE, udp


def eudp(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  a: float = 2.0,
  b: float = 0.0,
  probs: ArrayLike | None = None,
  game: Game = Game(),
  surrogate: Annotated[Surrogate, SURROGATE] = Surrogate(),
  adaptive: Adaptive = Adaptive(),
  spectrum: Spectrum = Spectrum(),
) -> Protection:
  """The bilevel loop with p(t) proportional to abar_t^a (1 - abar_t)^b in the perturb steps.

  Args:
    model: class of the surrogate, trained from scratch unless `init` gets parameters.
    radius: L-inf budget on the [0, 1] scale.
    step_size: length of a sign step on the [0, 1] scale.
    a: power of abar_t; (0, 0) is UDP.
    b: power of 1 - abar_t.
    probs: (T,) distribution over timesteps, used instead of (a, b). In configs "measured": what
      `experiments.timesteps` measured (`config.model.timestep_probs`).
    game: steps in a round, the start of delta, and the surrogate's Adam.
    surrogate: the part of the model that is trained, and its restarts.
    adaptive: transforms, draws and consistency of the perturb steps.
    spectrum: the band of frequencies of delta; a sign step moves it by `step_size` in the mean.

  Raises:
    ConfigError: an option does not work with joint steps, or the part to train is unknown.

  >>> from udp_jax.models import toy
  >>> jpeg = Adaptive("jpeg")
  >>> method = eudp(toy.on_latents(), radius=8 / 255, step_size=1 / 255, a=2.0, adaptive=jpeg)
  >>> method.trains, method.perturb_steps, method.needs_params
  (60, 4, False)
  """
  return udp(
    model,
    radius=radius,
    step_size=step_size,
    game=game,
    surrogate=surrogate,
    adaptive=adaptive,
    spectrum=spectrum,
    probs=timesteps.schedule_power(model.schedule, a, b) if probs is None else probs,
  )
