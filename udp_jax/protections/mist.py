"""Mist: the denoising loss up, the latents towards a picture of high contrast, or both.

Liang and Wu 2023 (arXiv:2305.12683), as psyker-team/mist (version 1) has it. Published on [-1, 1]:
radius 16/255 * 2, steps 1/255 * 2, which are 16 and 1 of 255 levels, 100 steps, random start.
Differences: the target is a pattern of our own (theirs is a picture file, which `target` takes),
and pictures are not cut into tiles here (`experiments.protect` does that, with blended seams).
"""

from __future__ import annotations

from udp_jax import constraints, objectives, objectives_latent
from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel
from udp_jax.ops import timesteps
from udp_jax.protections import targets
from udp_jax.protections.adaptive import adapted
from udp_jax.protections.base import Protection, over_batches, pgd, sign_descent

KINDS = ("semantic", "textural", "fused")


def mist(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  kind: str = "fused",
  rate: float = 1e4,
  target: str = "pattern",
  start: str = "uniform",
  transforms: str = "",
  consistency_weight: float = 0.0,
) -> Protection:
  """Sign-gradient descent of sum (latents - target latents)^2 - rate * denoising loss.

  Args:
    model: a latent model.
    radius: L-inf budget on the [0, 1] scale (published: 16 / 255).
    step_size: on the [0, 1] scale (published: 1 / 255, 100 steps).
    kind: "semantic" (the denoising loss alone, as AdvDM), "textural" (the latents alone), "fused".
    rate: of the denoising loss in "fused" (published: 10^(1 + 3)).
    target: one of `targets.PATTERNS`, "zero", or the path of a picture.
    start: of delta: "zero", "uniform" or "sign".
    transforms: see `adaptive`.
    consistency_weight: see `adaptive`; beside a sum over latents, or rate times a mean.

  Raises:
    ConfigError: a pixel model, an unknown kind, start or transform.
    MissingDataError, BadDataError: the target's file.
  """
  objectives_latent.require_latent(model, "mist")
  if kind not in KINDS:
    raise ConfigError(f"mist: unknown kind {kind!r}; known: {', '.join(KINDS)}")
  probs = timesteps.uniform(model.schedule.num_steps)
  semantic = objectives.denoising(model, probs)
  picture = targets.picture(target, model.image_shape)
  textural = objectives_latent.latent_distance(model, picture, reduction="sum", sampled=True)
  objective = {
    "semantic": objectives.negate(semantic),
    "textural": textural,
    "fused": objectives.weighted((1.0, textural), (-rate, semantic)),
  }[kind]
  objective = adapted(
    model, objective, transforms=transforms, consistency_weight=consistency_weight
  )
  constraint = constraints.linf(radius, start=start)
  return over_batches(pgd(objective, constraint, sign_descent(step_size)), hold=model.hold)
