"""Mist: raises the denoising loss, moves latents towards a high-contrast picture, or does both.

Liang and Wu 2023 (arXiv:2305.12683), after psyker-team/mist (version 1). Published on [-1, 1]:
radius 16/255 * 2, steps 1/255 * 2, which are 16 and 1 of 255 levels, 100 steps, random start.
Differences: the target is our own pattern (theirs is a picture file, which `target` accepts),
pictures are not cut into tiles here (`experiments.protect` does that, with blended seams), and no
crop is drawn. In the published code the denoising loss of the textural and fused kinds sees a
random crop of `input_size`; blocks have that size there, so that the crop is the whole block unless
`--non_resize` keeps a picture larger.
"""

from __future__ import annotations

from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel
from udp_jax.objectives import latent
from udp_jax.objectives.base import negate, weighted
from udp_jax.objectives.denoising import denoising
from udp_jax.ops import timesteps
from udp_jax.protections import constraints, targets
from udp_jax.protections.adaptive import adapted
from udp_jax.protections.base import Protection, over_batches, pgd, sign_descent
from udp_jax.protections.options import Adaptive, Spectrum

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
  adaptive: Adaptive = Adaptive(),
  spectrum: Spectrum = Spectrum(),
) -> Protection:
  """Sign-gradient descent of sum (latents - target latents)^2 - rate * denoising loss.

  Args:
    model: a latent model.
    radius: L-inf budget on the [0, 1] scale (published: 16 / 255).
    step_size: length of a sign step on the [0, 1] scale (published: 1 / 255, 100 steps).
    kind: "semantic" (only the denoising loss, as AdvDM), "textural" (only the latents), "fused".
    rate: weight of the denoising loss in "fused" (published: 10^(1 + 3)).
    target: one of `targets.PATTERNS`, "zero", or the path of a picture.
    start: the first delta, "zero", "uniform" or "sign".
    adaptive: transforms, draws and consistency. The consistency term is added to a sum over
      latents, or to `rate` times a mean.
    spectrum: the band of frequencies of delta; a sign step moves it by `step_size` in the mean.

  Raises:
    ConfigError: the model works on pixels, or the kind, the start or a transform is unknown.
    MissingDataError, BadDataError: the target's file is missing or damaged.

  >>> from udp_jax.models import toy
  >>> method = mist(toy.on_latents(), radius=8 / 255, step_size=1 / 255, kind="textural")
  >>> method.needs_params
  True
  """
  latent.require_latent(model, "mist")
  if kind not in KINDS:
    raise ConfigError(f"mist: unknown kind {kind!r}; known: {', '.join(KINDS)}")
  probs = timesteps.uniform(model.schedule.num_steps)
  semantic = denoising(model, probs)
  picture = targets.picture(target, model.image_shape)
  textural = latent.latent_distance(model, picture, reduction="sum", sampled=True)
  objective = {
    "semantic": negate(semantic),
    "textural": textural,
    "fused": weighted((1.0, textural), (-rate, semantic)),
  }[kind]
  objective = adapted(model, objective, adaptive)
  constraint = constraints.linf(radius, start=start, spectrum=spectrum)
  return over_batches(pgd(objective, constraint, sign_descent(step_size)), hold=model.hold)
