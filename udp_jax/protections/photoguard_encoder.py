"""PhotoGuard's encoder attack: moves the picture's latents to those of a target.

Salman et al. 2023 (arXiv:2302.06588), after the notebooks of MadryLab/photoguard: the un-squared
norm of the posterior's *mean* minus a target, by sign steps that shrink linearly to a hundredth.
Published on [-1, 1]: radius 0.06, steps 0.02 (img2img) or 0.01 (inpainting), 1000 of them, which
are 7.65, 2.55 and 1.28 of 255 levels; the demo uses 15.3 levels, steps of 1.28, 200 of them.
"""

from __future__ import annotations

import optax

from udp_jax.models.base import DiffusionModel
from udp_jax.objectives import latent
from udp_jax.objectives.base import negate
from udp_jax.protections import constraints, targets
from udp_jax.protections.adaptive import adapted
from udp_jax.protections.base import Protection, over_batches, pgd, sign_descent
from udp_jax.protections.options import Adaptive, Spectrum

AWAY = "away"


def photoguard_encoder(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  target: str = "zero",
  start: str = "uniform",
  decay_steps: int = 1000,
  adaptive: Adaptive = Adaptive(),
  spectrum: Spectrum = Spectrum(),
) -> Protection:
  """Sign-gradient descent of || mean latents of x - mean latents of the target ||_2.

  Args:
    model: a latent model; only its VAE is attacked.
    radius: L-inf budget on the [0, 1] scale.
    step_size: length of the first sign step on the [0, 1] scale.
    target: "zero" (published for img2img), "grey" (the demo), another of `targets.PATTERNS`, the
      path of a picture (published for inpainting), or "away" from the clean picture's latents.
    start: the first delta, "zero", "uniform" or "sign".
    decay_steps: rounds over which the step shrinks linearly to a hundredth, ideally the number of
      rounds; 0 keeps the step constant.
    adaptive: transforms, draws and consistency. The consistency term is added to a norm of latents
      with entries of about 1.
    spectrum: the band of frequencies of delta; a sign step moves it by `step_size` in the mean.

  Raises:
    ConfigError: the model works on pixels, or the start or a transform is unknown.
    MissingDataError, BadDataError: the target's file is missing or damaged.

  >>> from udp_jax.models import toy
  >>> sizes = {"radius": 8 / 255, "step_size": 1 / 255}
  >>> method = photoguard_encoder(toy.on_latents(), **sizes, target="grey")
  >>> method.needs_params
  True
  """
  latent.require_latent(model, "photoguard_encoder")
  if target == AWAY:
    objective = negate(latent.latent_distance_within(model, "clean"))
  else:
    picture = targets.picture(target, model.image_shape)
    objective = latent.latent_distance(model, picture)
  objective = adapted(model, objective, adaptive)
  sizes = optax.linear_schedule(step_size, step_size / 100, decay_steps)
  tx = sign_descent(sizes if decay_steps else step_size)
  constraint = constraints.linf(radius, start=start, spectrum=spectrum)
  return over_batches(pgd(objective, constraint, tx, sees_batch=target == AWAY), hold=model.hold)
