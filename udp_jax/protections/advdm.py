"""AdvDM: only the max step, against a model that is already trained.

Liang et al. 2023 (arXiv:2302.04578) maximise the denoising loss of a fixed latent model, through
its encoder, with each picture's prompt as `cond`; on a pixel model this is the setting of "Pixel is
a Barrier" (Xue and Chen 2024), who find it hard to attack.
"""

from __future__ import annotations

from jax.typing import ArrayLike

from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel
from udp_jax.objectives.base import negate
from udp_jax.objectives.denoising import denoising
from udp_jax.ops import timesteps
from udp_jax.protections import constraints
from udp_jax.protections.adaptive import adapted
from udp_jax.protections.base import Protection, over_batches, pgd, sign_descent
from udp_jax.protections.options import Adaptive, Spectrum

DIRECTIONS = ("plus", "minus")


def advdm(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  start: str = "uniform",
  direction: str = "plus",
  a: float = 0.0,
  b: float = 0.0,
  probs: ArrayLike | None = None,
  adaptive: Adaptive = Adaptive(),
  spectrum: Spectrum = Spectrum(),
) -> Protection:
  """Sign-gradient ascent, or descent, of the denoising loss of a fixed model.

  Args:
    model: the attacked model; `init` and `update` need its trained parameters.
    radius: L-inf budget on the [0, 1] scale (published: 16 / 255).
    step_size: length of a sign step on the [0, 1] scale (published: 1 / 255, 100 steps).
    start: the first delta, "zero", "uniform" or "sign".
    direction: "plus" raises the loss; "minus" lowers it, AdvDM(-) of Diff-Protect (`g_mode`), which
      blurs edits.
    a: power of abar_t in the distribution over timesteps (`schedule_power`); published: 0.
    b: power of 1 - abar_t in it; published: 0. With (0, 0) it is uniform.
    probs: (T,) distribution over timesteps, used instead of (a, b); in configs "measured".
    adaptive: transforms, draws and consistency.
    spectrum: the band of frequencies of delta; a sign step moves it by `step_size` in the mean.

  Raises:
    ConfigError: the direction, the start or a transform is unknown, or the weight cannot be used.

  >>> from udp_jax.models import toy
  >>> method = advdm(toy.on_latents(), radius=8 / 255, step_size=1 / 255, a=1.0)
  >>> method.needs_params, method.perturb_steps
  (True, 1)
  """
  probs = timesteps.schedule_power(model.schedule, a, b) if probs is None else probs
  if direction not in DIRECTIONS:
    raise ConfigError(f"advdm: unknown direction {direction!r}; known: {', '.join(DIRECTIONS)}")
  loss = denoising(model, probs)
  attacked = adapted(model, negate(loss) if direction == "plus" else loss, adaptive)
  constraint = constraints.linf(radius, start=start, spectrum=spectrum)
  return over_batches(pgd(attacked, constraint, sign_descent(step_size)), hold=model.hold)
