"""AdvDM: the max step alone, against a model that is trained already.

Liang et al. 2023 (arXiv:2302.04578) maximise the denoising loss of a fixed latent model, through
its encoder, with each picture's prompt as `cond`; on a pixel model this is the setting of "Pixel is
a Barrier" (Xue and Chen 2024), who find it hard to attack.
"""

from __future__ import annotations

from udp_jax import constraints, objectives
from udp_jax.models.base import DiffusionModel
from udp_jax.ops import timesteps
from udp_jax.protections.adaptive import adapted
from udp_jax.protections.base import Protection, over_batches, pgd, sign_descent


def advdm(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  start: str = "uniform",
  a: float = 0.0,
  b: float = 0.0,
  transforms: str = "",
  consistency_weight: float = 0.0,
) -> Protection:
  """Sign-gradient ascent of the denoising loss of a fixed model.

  Args:
    model: the attacked model; `init` and `update` need its trained parameters.
    radius: L-inf budget on the [0, 1] scale (published: 16 / 255).
    step_size: on the [0, 1] scale (published: 1 / 255, 100 steps).
    start: of delta: "zero", "uniform" or "sign".
    a: with b, the distribution over timesteps (`schedule_power`); published: uniform, (0, 0).
    b: see `a`.
    transforms: see `adaptive`.
    consistency_weight: see `adaptive`; latent models only.

  Raises:
    ConfigError: an unknown start or transform, or a weight that cannot be used.
  """
  probs = timesteps.schedule_power(model.schedule, a, b)
  attacked = adapted(
    model,
    objectives.negate(objectives.denoising(model, probs)),
    transforms=transforms,
    consistency_weight=consistency_weight,
  )
  constraint = constraints.linf(radius, start=start)
  return over_batches(pgd(attacked, constraint, sign_descent(step_size)), hold=model.hold)
