"""Random noise: the control that every protection has to beat."""

from __future__ import annotations

from udp_jax import constraints
from udp_jax.models.base import DiffusionModel
from udp_jax.protections.base import Protection, fixed


def random_noise(
  model: DiffusionModel, *, radius: float, distribution: str = "uniform"
) -> Protection:
  """Independent noise on every pixel and channel, drawn once.

  Args:
    model: unused.
    radius: L-inf budget on the [0, 1] scale.
    distribution: "uniform" in [-radius, radius], or "sign": every pixel at +-radius.
  """
  del model  # The same noise whatever the model.
  return fixed(constraints.linf(radius, start=distribution).init)
