"""PhotoGuard's encoder attack: the picture's latents become those of something else.

Salman et al. 2023 (arXiv:2302.06588), as MadryLab/photoguard's notebooks have it: the un-squared
norm of the posterior's *mean* minus a target, sign steps that shrink linearly to a hundredth.
Published on [-1, 1]: radius 0.06, steps 0.02 (img2img) or 0.01 (inpainting), 1000 of them, which
are 7.65, 2.55 and 1.28 of 255 levels; the demo uses 15.3 levels, steps of 1.28, 200 of them.
"""

from __future__ import annotations

import optax

from udp_jax import constraints, objectives, objectives_latent
from udp_jax.models.base import DiffusionModel
from udp_jax.protections import targets
from udp_jax.protections.adaptive import adapted
from udp_jax.protections.base import Protection, over_batches, pgd, sign_descent

AWAY = "away"


def photoguard_encoder(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  target: str = "zero",
  start: str = "uniform",
  decay_steps: int = 1000,
  transforms: str = "",
  consistency_weight: float = 0.0,
) -> Protection:
  """Sign-gradient descent of || mean latents of x - those of the target ||_2.

  Args:
    model: a latent model; its VAE alone is attacked.
    radius: L-inf budget on the [0, 1] scale.
    step_size: of the first step, on the [0, 1] scale.
    target: "zero" (published for img2img), "grey" (the demo), another of `targets.PATTERNS`, a path
      of a picture (published for inpainting), or "away": from the latents of the clean picture.
    start: of delta: "zero", "uniform" or "sign".
    decay_steps: rounds over which the step shrinks linearly to a hundredth; best the number of
      rounds. 0 keeps it.
    transforms: see `adaptive`.
    consistency_weight: see `adaptive`; beside a norm of latents, which are numbers about 1.

  Raises:
    ConfigError: a pixel model, or an unknown start or transform.
    MissingDataError, BadDataError: the target's file.
  """
  objectives_latent.require_latent(model, "photoguard_encoder")
  if target == AWAY:
    objective = objectives.negate(objectives_latent.latent_distance_within(model, "clean"))
  else:
    picture = targets.picture(target, model.image_shape)
    objective = objectives_latent.latent_distance(model, picture)
  objective = adapted(
    model, objective, transforms=transforms, consistency_weight=consistency_weight
  )
  sizes = optax.linear_schedule(step_size, step_size / 100, decay_steps)
  tx = sign_descent(sizes if decay_steps else step_size)
  constraint = constraints.linf(radius, start=start)
  return over_batches(pgd(objective, constraint, tx, sees_batch=target == AWAY), hold=model.hold)
