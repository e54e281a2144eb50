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
in another style (Stable Diffusion img2img, "Cubism by Picasso", strength 0.4), which is
`target="style_transfer"`: made once, before the first step, by the attacked model (theirs: 2.1
base) and without a file between; its latents are the posterior's mean (theirs: drawn).
`target="reference"` takes such pictures from `Batch.reference`; others are one picture for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import optax

from udp_jax import constraints, objectives, objectives_latent
from udp_jax.errors import ConfigError
from udp_jax.models import perceptual as perceptual_lib
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.protections import targets
from udp_jax.protections.adaptive import adapted
from udp_jax.protections.base import Info, PGDState, Protection, over_batches, pgd
from udp_jax.randomness import stream
from udp_jax.training import Batch

REFERENCE = "reference"
STYLE_TRANSFER = "style_transfer"


class StyledState(NamedTuple):
  """The perturbations, and every picture in the other style, uint8 (num_batches, B, H, W, 3)."""

  inner: PGDState
  style: jax.Array

  @property
  def delta(self) -> jax.Array:
    """(num_batches, B, H, W, C)."""
    return self.inner.delta


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
  style_ids: Sequence[int] | None = None,
  strength: float = 0.4,
  sample_steps: int = 50,
  guidance_scale: float = 7.5,
  uncond_ids: Sequence[int] | None = None,
  transforms: str = "",
  consistency_weight: float = 0.0,
) -> Protection:
  """Adam on the distance to a style's latents, with a penalty for what can be seen.

  Args:
    model: a latent model; its VAE alone is attacked.
    radius: L-inf budget on the [0, 1] scale, and of the uniform start.
    step_size: Adam's rate on the [0, 1] scale, the size of its first step.
    target: "style_transfer" (published), "reference" (each picture's own, from `Batch.reference`),
      one of `targets.PATTERNS`, "zero", or the path of a picture in the style. The default is a
      pattern in place of a style.
    perceptual: distance of `models.perceptual` ("lpips_vgg" is the published one); "" for none.
    perceptual_weights: its weight file, where it needs one.
    perceptual_budget: distance that costs nothing, on that distance's own scale.
    perceptual_weight: of the distance beyond it.
    style_ids: (L,) token ids of the style that "style_transfer" turns pictures to; a config says
      `style_prompt` (published: "Cubism by Picasso").
    strength: of the transfer, see `targets.style_transfer`.
    sample_steps: of the transfer's whole chain.
    guidance_scale: of the transfer; other than 1 it needs `uncond_ids`.
    uncond_ids: (L,) token ids of the empty prompt.
    transforms: see `adaptive`; they are not applied for the perceptual distance.
    consistency_weight: see `adaptive`.

  Raises:
    ConfigError: a pixel model, pictures too small for the distance, no prompt where one is
      needed, or an option that cannot be used.
    MissingDataError, BadDataError: the target's file, or the weights.
  """
  objectives_latent.require_latent(model, "glaze")
  transfer = None
  if target == STYLE_TRANSFER:
    transfer = targets.style_transfer(
      model,
      style_ids,
      strength=strength,
      sample_steps=sample_steps,
      guidance_scale=guidance_scale,
      uncond_ids=uncond_ids,
    )
  if target in (REFERENCE, STYLE_TRANSFER):
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
  if transfer is not None:
    return _styled(lifted, transfer)
  return lifted._replace(needs_reference=target == REFERENCE)


def _styled(inner: Protection, transfer: Any) -> Protection:
  """`inner`, whose reference pictures are made at the start and kept."""

  def init(key: jax.Array, data: Batch, params: Params) -> StyledState:
    style = transfer(stream(key, "style"), data, params)
    return StyledState(inner.init(key, data._replace(reference=style), params), style)

  def update(
    key: jax.Array, state: StyledState, data: Batch, params: Params, phase: Any = None
  ) -> tuple[StyledState, Info]:
    data = data._replace(reference=state.style)
    deltas, info = inner.update(key, state.inner, data, params, phase)
    return state._replace(inner=deltas), info

  return inner._replace(init=init, update=update)
