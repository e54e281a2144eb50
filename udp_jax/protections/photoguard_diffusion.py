"""PhotoGuard's diffusion attack: what a few steps of the sampler make of the picture goes to grey.

Salman et al. 2023 (arXiv:2302.06588), as MadryLab/photoguard's notebook on inpainting has it: the
un-squared norm of the edited picture minus a target (0 on [-1, 1]), through 4 steps of DDIM with
eta 1, the gradient averaged over 10 draws of the noise. Published: an L2 ball of radius 16 with
normalised steps of length 1 on [-1, 1], 200 of them, for 512x512 (radius 8 and steps of 0.5 here);
or L-inf 0.1 with steps of 0.006, 5 draws (12.75 and 0.77 of 255 levels).

Differences: models without 9 input channels are attacked through SDEdit instead of inpainting, and
guidance is off by default, since with the published empty prompt it changes nothing.
"""

from __future__ import annotations

from typing import Any

from udp_jax import constraints, objectives_latent
from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel
from udp_jax.protections import targets
from udp_jax.protections.adaptive import adapted
from udp_jax.protections.base import Protection, l2_descent, over_batches, pgd, sign_descent


def photoguard_diffusion(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  l2_radius: float = 0.0,
  target: str = "grey",
  start: str = "zero",
  sample_steps: int = 4,
  num_draws: int = 10,
  eta: float = 1.0,
  strength: float = 1.0,
  guidance_scale: float = 1.0,
  uncond_ids: Any = None,
  transforms: str = "",
  consistency_weight: float = 0.0,
) -> Protection:
  """Descent of || edit(x) - target ||_2, by sign steps, or normalised ones within an L2 ball.

  Args:
    model: a latent model; `cond` that has a mask inpaints, see `objectives_latent.through_sampler`.
    radius: L-inf budget on the [0, 1] scale, always kept.
    step_size: on the [0, 1] scale: of every pixel, or with `l2_radius` the length of a step.
    l2_radius: further budget: Euclidean norm of a picture's delta on the [0, 1] scale. 0 for none.
    target: one of `targets.PATTERNS` or the path of a picture.
    start: of delta: "zero", "uniform" or "sign".
    sample_steps: of DDIM.
    num_draws: draws of the noise that a gradient is averaged over, one after the other.
    eta: of DDIM.
    strength: of SDEdit, in (0, 1].
    guidance_scale: of classifier-free guidance; other than 1 it needs `uncond_ids`.
    uncond_ids: (L,) token ids of the empty prompt.
    transforms: see `adaptive`.
    consistency_weight: see `adaptive`.

  Raises:
    ConfigError: a pixel model, target "zero", steps that do not fit, or guidance without ids.
    MissingDataError, BadDataError: the target's file.
  """
  objectives_latent.require_latent(model, "photoguard_diffusion")
  picture = targets.picture(target, model.image_shape)
  if picture is None:
    raise ConfigError("photoguard_diffusion drives pictures, not latents: 'grey' is its zero")
  objective = objectives_latent.through_sampler(
    model,
    picture,
    num_steps=sample_steps,
    eta=eta,
    strength=strength,
    guidance_scale=guidance_scale,
    uncond_ids=uncond_ids,
  )
  objective = adapted(
    model,
    objective,
    transforms=transforms,
    consistency_weight=consistency_weight,
    num_draws=num_draws,
  )
  constraint, tx = constraints.linf(radius, start=start), sign_descent(step_size)
  if l2_radius:
    ball = constraints.l2(l2_radius, start=start)
    constraint, tx = constraints.intersection(ball, constraint), l2_descent(step_size)
  return over_batches(pgd(objective, constraint, tx), hold=model.hold)
