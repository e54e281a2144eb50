"""Glaze, as IMPRESS re-implements it: latents in another style, the picture kept to the eye.

Shan et al. 2023 (arXiv:2302.04222) describe, AAAAAAsuka/Impress (glaze.py) writes down: Adam on
mean (latents - target latents)^2 + weight * max(LPIPS - budget, 0), latents drawn from the
posterior, delta uniform in +-p at the start. Published: p = 0.05 on [-1, 1] (6.4 of 255 levels)
for start and LPIPS alike, weight 30 on unscaled latents, 500 steps of rate 0.01 on [-1, 1] (1.28
levels).

Differences. Theirs bounds delta by the perceptual term alone; ours is projected on the radius as
well, so that the saved file obeys the budget. Latents are scaled by the model's factor, so that
weight 30 on Stable Diffusion is 30 * 0.18215^2 = 1 here; the same factor holds for their adaptive
form, whose consistency weight of 30 is `consistency_weight=1`. Their target is the picture itself
in another style (Stable Diffusion img2img, "Cubism by Picasso", strength 0.4): give such pictures
as `Batch.reference` and `target="reference"`; other targets are one picture for all.
"""

from __future__ import annotations

import optax

from udp_jax import constraints, objectives, objectives_latent
from udp_jax.errors import ConfigError
from udp_jax.models import perceptual as perceptual_lib
from udp_jax.models.base import DiffusionModel
from udp_jax.protections import targets
from udp_jax.protections.adaptive import adapted
from udp_jax.protections.base import Protection, over_batches, pgd

REFERENCE = "reference"


def glaze(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  target: str = "facets",
  perceptual: str = perceptual_lib.DEFAULT,
  perceptual_weights: str = "",
  perceptual_budget: float = 0.05,
  perceptual_weight: float = 1.0,
  transforms: str = "",
  consistency_weight: float = 0.0,
) -> Protection:
  """Adam on the distance to a style's latents, with a penalty for what can be seen.

  Args:
    model: a latent model; its VAE alone is attacked.
    radius: L-inf budget on the [0, 1] scale, and of the uniform start.
    step_size: Adam's rate on the [0, 1] scale, the size of its first step.
    target: "reference" (each picture's own, from `Batch.reference`), one of `targets.PATTERNS`,
      "zero", or the path of a picture in the style. The default is a pattern in place of a style.
    perceptual: distance of `models.perceptual` ("lpips_vgg" is the published one); "" for none.
    perceptual_weights: its weight file, where it needs one.
    perceptual_budget: distance that costs nothing, on that distance's own scale.
    perceptual_weight: of the distance beyond it.
    transforms: see `adaptive`; they are not applied for the perceptual distance.
    consistency_weight: see `adaptive`.

  Raises:
    ConfigError: a pixel model, pictures too small for the distance, or an unknown option.
    MissingDataError, BadDataError: the target's file, or the weights.
  """
  objectives_latent.require_latent(model, "glaze")
  if target == REFERENCE:
    style = objectives_latent.latent_distance_within(
      model, REFERENCE, reduction="mean", sampled=True
    )
  else:
    picture = targets.picture(target, model.image_shape)
    style = objectives_latent.latent_distance(model, picture, reduction="mean", sampled=True)
  terms = [
    (1.0, adapted(model, style, transforms=transforms, consistency_weight=consistency_weight))
  ]
  if perceptual and perceptual_weight:
    distance = perceptual_lib.load(perceptual, weights=perceptual_weights or None)
    if min(model.image_shape[:2]) < distance.min_size:
      raise ConfigError(
        f"glaze: {distance.name} needs pictures of {distance.min_size} pixels and more; set "
        "perceptual to another distance, or to '' for none"
      )
    terms.append((perceptual_weight, objectives_latent.seen(distance, perceptual_budget)))
  objective = objectives.weighted(*terms)
  constraint = constraints.linf(radius, start="uniform")
  protection = pgd(objective, constraint, optax.adam(step_size), sees_batch=True)
  lifted = over_batches(protection, hold=model.hold)
  return lifted._replace(needs_reference=target == REFERENCE)
