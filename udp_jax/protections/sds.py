"""SDS: AdvDM without the U-Net's gradient: loss up (SDS+), down (SDS-), or with a target (SDST).

Xue et al. 2023 (arXiv:2311.12832), after xavihart/Diff-Protect: with the score distillation
gradient, only the encoder is differentiated (they report half the memory and twice the speed).
Published on [-1, 1]: radius 16/255 * 2, steps 1/255 * 2, which are 16 and 1 of 255 levels,
100 steps, start zero. Their program's default is SDS-, which blurs edits.
"""

from __future__ import annotations

from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel
from udp_jax.objectives import latent
from udp_jax.objectives.base import weighted
from udp_jax.ops import timesteps
from udp_jax.protections import constraints, targets
from udp_jax.protections.adaptive import adapted
from udp_jax.protections.base import Protection, over_batches, pgd, sign_descent
from udp_jax.protections.options import Adaptive, Spectrum

# Sign of the score distillation objective, which is minimised.
DIRECTIONS = {"minus": 1.0, "plus": -1.0}


def sds(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  direction: str = "minus",
  target: str = "",
  rate: float = 5.0,
  start: str = "zero",
  adaptive: Adaptive = Adaptive(),
  spectrum: Spectrum = Spectrum(),
) -> Protection:
  """Sign steps along the score distillation gradient.

  Args:
    model: the attacked model.
    radius: L-inf budget on the [0, 1] scale (published: 16 / 255).
    step_size: length of a sign step on the [0, 1] scale (published: 1 / 255, 100 steps).
    direction: "minus" (SDS-, pictures that are easy to denoise) or "plus" (SDS+).
    target: "" for none; else SDST also minimises the squared distance to the latents of one of
      `targets.PATTERNS`, of "zero", or of a picture by its path.
    rate: weight of score distillation beside the target (published: 5).
    start: the first delta, "zero", "uniform" or "sign".
    adaptive: transforms, draws and consistency.
    spectrum: the band of frequencies of delta; a sign step moves it by `step_size` in the mean.

  Raises:
    ConfigError: the direction, the start or a transform is unknown, or a pixel model has a target.
    MissingDataError, BadDataError: the target's file is missing or damaged.

  >>> from udp_jax.models import toy
  >>> method = sds(toy.on_pixels(), radius=8 / 255, step_size=1 / 255, direction="plus")
  >>> method.needs_params
  True
  """
  if direction not in DIRECTIONS:
    raise ConfigError(f"sds: unknown direction {direction!r}; known: {', '.join(DIRECTIONS)}")
  sign = DIRECTIONS[direction]
  distilled = latent.sds(model, timesteps.uniform(model.schedule.num_steps))
  if target:
    latent.require_latent(model, "sds with a target")
    picture = targets.picture(target, model.image_shape)
    near = latent.latent_distance(model, picture, reduction="sum", sampled=True)
    objective = weighted((1.0, near), (sign * rate, distilled))
  else:
    objective = weighted((sign, distilled))
  objective = adapted(model, objective, adaptive)
  constraint = constraints.linf(radius, start=start, spectrum=spectrum)
  return over_batches(pgd(objective, constraint, sign_descent(step_size)), hold=model.hold)
