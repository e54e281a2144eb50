"""ACE+: ACE with one target for both the U-Net's prediction and the VAE's latents.

"Targeted attack improves protection against unauthorized diffusion customization", the fused mode
of caradryanl/ACE: with the terms of `ace`,

  minimise E_{t, noise} mean (noise_pred(z_t, t) - z_T)^2 + 100 * mean (z - z_T)^2

with the published budget, rounds and surrogate of ACE, and the differences named there.
"""

from __future__ import annotations

from typing import Annotated

from udp_jax.models.base import DiffusionModel
from udp_jax.models.sampling import Sampling
from udp_jax.protections import surrogates
from udp_jax.protections.ace import GAME, ace
from udp_jax.protections.base import Protection
from udp_jax.protections.options import Adaptive, Game, Prior, Spectrum, Surrogate


def ace_plus(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  latent_weight: float = 100.0,
  target: str = "pattern",
  prior: Prior = Prior(),
  sampling: Annotated[Sampling, surrogates.SAMPLING] = Sampling(),
  game: Annotated[Game, surrogates.GAME] = GAME,
  surrogate: Annotated[Surrogate, surrogates.SURROGATE] = Surrogate(),
  earliest: float = 0.6,
  adaptive: Adaptive = Adaptive(),
  spectrum: Spectrum = Spectrum(),
) -> Protection:
  """The rounds of ACE with the latents drawn to the target, too.

  Args:
    model: a latent model; `init` and `update` need its trained parameters.
    radius: L-inf budget on the [0, 1] scale (published: 4 / 255).
    step_size: length of a sign step on the [0, 1] scale (published: 0.64 / 255, 5 rounds of 50).
    latent_weight: weight of the latents' distance to the target's (published: 100).
    target: one of `targets.PATTERNS`, "zero", or the path of a picture (published).
    prior: the class that the surrogate must not forget.
    sampling: how the model draws the class pictures.
    game: steps in a round, the start of delta, and the surrogate's AdamW.
    surrogate: the part of the model that is trained; published: "lora".
    earliest: first timestep that is drawn, as a share of the schedule in [0, 1).
    adaptive: transforms, draws and consistency of the perturb steps.
    spectrum: the band of frequencies of delta; a sign step moves it by `step_size` in the mean.

  Raises:
    ConfigError: the model works on pixels, or an option cannot be used.
    MissingDataError, BadDataError: the target's file is missing or damaged.

  >>> from udp_jax.models import toy
  >>> ace_plus(toy.on_latents(), radius=4 / 255, step_size=0.64 / 255).perturb_steps
  50
  """
  return ace(
    model,
    radius=radius,
    step_size=step_size,
    target=target,
    latent_weight=latent_weight,
    earliest=earliest,
    game=game,
    surrogate=surrogate,
    prior=prior,
    sampling=sampling,
    adaptive=adaptive,
    spectrum=spectrum,
  )
