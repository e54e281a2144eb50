"""PhotoGuard's diffusion attack: moves the result of a few sampling steps towards grey.

Salman et al. 2023 (arXiv:2302.06588), after the inpainting notebook of MadryLab/photoguard: the
un-squared norm of the edited picture minus a target (0 on [-1, 1]), through 4 steps of DDIM with
eta 1, the gradient averaged over 10 draws of the noise. Published: an L2 ball of radius 16 with
normalised steps of length 1 on [-1, 1], 200 of them, for 512x512 (radius 8 and steps of 0.5 here);
or L-inf 0.1 with steps of 0.006, 5 draws (12.75 and 0.77 of 255 levels). It is one or the other:
the L2 form has no limit for a single value, which is `radius` 1 (255 levels) here.

Differences: models without 9 input channels are attacked through SDEdit instead of inpainting, and
guidance is off by default, since it has no effect with the published empty prompt.
"""

from __future__ import annotations

from typing import Annotated

from udp_jax import registry
from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel
from udp_jax.models.sampling import Sampling
from udp_jax.objectives import latent
from udp_jax.protections import constraints, targets
from udp_jax.protections.adaptive import adapted
from udp_jax.protections.base import Protection, l2_descent, over_batches, pgd, sign_descent
from udp_jax.protections.options import Adaptive, Spectrum

# Fields of `Sampling` that this method uses.
SAMPLING = ("sample_steps", "eta", "guidance_scale", "uncond_ids")


def photoguard_diffusion(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  l2_radius: float = 0.0,
  target: str = "grey",
  start: str = "zero",
  strength: float = 1.0,
  sampling: Annotated[Sampling, SAMPLING] = Sampling(sample_steps=4, eta=1.0, guidance_scale=1.0),
  adaptive: Adaptive = Adaptive(num_draws=10),
  spectrum: Spectrum = Spectrum(),
) -> Protection:
  """Descends || edit(x) - target ||_2 by sign steps, or by normalised steps in an L2 ball.

  Args:
    model: a latent model; if `cond` has a mask, the attacked edit inpaints.
    radius: L-inf budget on the [0, 1] scale, which always holds; 1, no limit, with the published
      `l2_radius`.
    step_size: change of each value, or with `l2_radius` the length of a step; on the [0, 1] scale.
    l2_radius: Euclidean norm of a picture's delta on the [0, 1] scale, before delta is rounded to 8
      bits; 0 for none.
    target: one of `targets.PATTERNS` or the path of a picture.
    start: the first delta, "zero", "uniform" or "sign".
    strength: share of the chain that SDEdit runs, in (0, 1].
    sampling: the steps of DDIM and their noise; guidance other than 1 needs `uncond_ids`.
    adaptive: transforms, consistency, and the number of noise draws that a gradient averages.
    spectrum: the band of frequencies of delta; a sign step moves it by `step_size` in the mean.

  Raises:
    ConfigError: the model works on pixels, the target is "zero", steps do not fit, or guidance has
      no ids.
    MissingDataError, BadDataError: the target's file is missing or damaged.

  >>> from udp_jax.models import toy
  >>> few = Adaptive(num_draws=2)
  >>> sizes = {"radius": 8 / 255, "step_size": 1 / 255}
  >>> method = photoguard_diffusion(toy.on_latents(), **sizes, adaptive=few)
  >>> method.needs_params
  True
  """
  registry.only("photoguard_diffusion", sampling, SAMPLING)
  latent.require_latent(model, "photoguard_diffusion")
  picture = targets.picture(target, model.image_shape)
  if picture is None:
    raise ConfigError("photoguard_diffusion drives pictures, not latents: 'grey' is its zero")
  objective = latent.through_sampler(
    model,
    picture,
    num_steps=sampling.sample_steps,
    eta=sampling.eta,
    strength=strength,
    guidance_scale=sampling.guidance_scale,
    uncond_ids=sampling.uncond_ids,
  )
  objective = adapted(model, objective, adaptive)
  constraint, tx = constraints.linf(radius, start=start, spectrum=spectrum), sign_descent(step_size)
  if l2_radius:
    ball = constraints.l2(l2_radius, start=start)
    constraint, tx = constraints.intersection(ball, constraint), l2_descent(step_size)
  return over_batches(pgd(objective, constraint, tx), hold=model.hold)
