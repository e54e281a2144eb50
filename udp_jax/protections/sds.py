"""SDS: AdvDM without the U-Net's gradient, up (SDS+) or down (SDS-), with a target (SDST).

Xue et al. 2023 (arXiv:2311.12832), as xavihart/Diff-Protect has it: the score distillation
gradient, so that only the encoder is differentiated (they report half the memory and twice the
speed). Published on [-1, 1]: radius 16/255 * 2, steps 1/255 * 2, which are 16 and 1 of 255 levels,
100 steps, start zero. Down (SDS-) is the default of their program: edits then get blurred.
"""

from __future__ import annotations

from udp_jax import constraints, objectives, objectives_latent
from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel
from udp_jax.ops import timesteps
from udp_jax.protections import targets
from udp_jax.protections.adaptive import adapted
from udp_jax.protections.base import Protection, over_batches, pgd, sign_descent

# The sign with which the objective is descended.
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
  transforms: str = "",
  consistency_weight: float = 0.0,
) -> Protection:
  """Sign steps along the score distillation gradient.

  Args:
    model: the attacked model.
    radius: L-inf budget on the [0, 1] scale (published: 16 / 255).
    step_size: on the [0, 1] scale (published: 1 / 255, 100 steps).
    direction: "minus" (SDS-, pictures that are easy to denoise) or "plus" (SDS+).
    target: "" for none; else SDST: the squared distance to the latents of one of
      `targets.PATTERNS`, of "zero", or of a picture by its path, is descended too.
    rate: of score distillation beside it (published: 5).
    start: of delta: "zero", "uniform" or "sign".
    transforms: see `adaptive`.
    consistency_weight: see `adaptive`.

  Raises:
    ConfigError: an unknown direction, start or transform, or a target with a pixel model.
    MissingDataError, BadDataError: the target's file.
  """
  if direction not in DIRECTIONS:
    raise ConfigError(f"sds: unknown direction {direction!r}; known: {', '.join(DIRECTIONS)}")
  sign = DIRECTIONS[direction]
  distilled = objectives_latent.sds(model, timesteps.uniform(model.schedule.num_steps))
  if target:
    objectives_latent.require_latent(model, "sds with a target")
    picture = targets.picture(target, model.image_shape)
    near = objectives_latent.latent_distance(model, picture, reduction="sum", sampled=True)
    objective = objectives.weighted((1.0, near), (sign * rate, distilled))
  else:
    objective = objectives.weighted((sign, distilled))
  objective = adapted(
    model, objective, transforms=transforms, consistency_weight=consistency_weight
  )
  constraint = constraints.linf(radius, start=start)
  return over_batches(pgd(objective, constraint, sign_descent(step_size)), hold=model.hold)
