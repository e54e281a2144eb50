"""Ensembles of fixed models: one perturbation that climbs the mean loss of several models.

Anti-DreamBooth (Le et al. 2023, arXiv:2303.15433) trains against Stable Diffusion 1.4, 1.5 and 2.1
together. Its code averages the *pictures* that each model's sign steps lead to; here the
*gradients* are averaged with equal weights, and the sign is taken once, so that the result is what
one model with the mean loss would give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from udp_jax.errors import ConfigError
from udp_jax.models.base import Cond, DiffusionModel, Params
from udp_jax.objectives.base import Objective, negate
from udp_jax.objectives.denoising import denoising
from udp_jax.ops import timesteps
from udp_jax.protections import constraints
from udp_jax.protections.adaptive import adapted
from udp_jax.protections.base import Protection, over_batches, pgd, sign_descent
from udp_jax.protections.options import Adaptive, Spectrum


def mean_over_models(objectives: Sequence[Objective]) -> Objective:
  """The mean of one objective per model; `params` is a sequence with the parameters of each.

  All of them get the same keys. `cond` is a tuple with one conditioning per model, or is the same
  for all of them.

  Raises:
    ConfigError: there is no objective.

  >>> brightness = lambda params, images, cond, keys: (params * images.mean((1, 2, 3)), {})
  >>> both = mean_over_models([brightness, brightness])
  >>> both((1.0, 3.0), jnp.ones((2, 4, 4, 3)), None, None)[0].tolist()
  [2.0, 2.0]
  """
  if not objectives:
    raise ConfigError("an ensemble needs at least one model")

  def objective(params: Sequence[Params], images: jax.Array, cond: Cond, keys: jax.Array):
    conds = cond if isinstance(cond, tuple) else (cond,) * len(objectives)
    total = jnp.zeros(images.shape[0])
    for one, own, told in zip(objectives, params, conds, strict=True):
      total = total + one(own, images, told, keys)[0]
    return total / len(objectives), {}

  return objective


def ensemble(
  models: Sequence[DiffusionModel],
  *,
  radius: float,
  step_size: float,
  start: str = "uniform",
  perturb_steps: int = 1,
  adaptive: Adaptive = Adaptive(),
  spectrum: Spectrum = Spectrum(),
  objective_of: Callable[[DiffusionModel], Objective] | None = None,
) -> Protection:
  """AdvDM, or another objective, against several fixed models or surrogates at once.

  Args:
    models: the attacked models, all for pictures of one size. `init` and `update` need a sequence
      of their parameters, in this order; parameters of fine-tuned surrogates serve too.
    radius: L-inf budget on the [0, 1] scale.
    step_size: length of a sign step on the [0, 1] scale.
    start: the first delta, "zero", "uniform" or "sign".
    perturb_steps: steps of each picture in a round.
    adaptive: transforms, draws and consistency.
    spectrum: the band of frequencies of delta; a sign step moves it by `step_size` in the mean.
    objective_of: model -> the loss that delta minimises; None raises the denoising loss.

  Raises:
    ConfigError: there is no model, sizes differ, or an option cannot be used.

  >>> from udp_jax.models import toy
  >>> models = [toy.on_pixels(), toy.on_latents()]
  >>> ensemble(models, radius=8 / 255, step_size=1 / 255).needs_params
  True
  """
  sizes = {model.image_shape for model in models}
  if len(sizes) > 1:
    raise ConfigError(f"models of an ensemble are for pictures of one size, not {sorted(sizes)}")

  def raised(model: DiffusionModel) -> Objective:
    return negate(denoising(model, timesteps.uniform(model.schedule.num_steps)))

  make = objective_of or raised
  objective = mean_over_models([adapted(model, make(model), adaptive) for model in models])

  def hold(params: Sequence[Params]) -> tuple[Params, ...]:
    return tuple(model.hold(own) for model, own in zip(models, params, strict=True))

  constraint = constraints.linf(radius, start=start, spectrum=spectrum)
  inner = pgd(objective, constraint, sign_descent(step_size))
  return over_batches(inner, num_steps=perturb_steps, hold=hold)
