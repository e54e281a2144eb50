"""Random noise: the control that every protection has to beat."""

from __future__ import annotations

from udp_jax.models.base import DiffusionModel
from udp_jax.protections import constraints
from udp_jax.protections.base import Protection, fixed


def random_noise(
  model: DiffusionModel, *, radius: float, distribution: str = "uniform"
) -> Protection:
  """Independent noise on every pixel and channel, drawn once.

  Args:
    model: unused.
    radius: L-inf budget on the [0, 1] scale.
    distribution: "uniform" in [-radius, radius], or "sign": each value is +radius or -radius.

  >>> import jax
  >>> import numpy as np
  >>> from udp_jax.data import batches
  >>> from udp_jax.models import toy
  >>> noise = random_noise(toy.on_pixels(), radius=0.1, distribution="sign")
  >>> data = batches.make_batches(np.full((2, 4, 4, 3), 128, np.uint8), 2)
  >>> delta = noise.init(jax.random.key(0), data, None).delta
  >>> round(float(abs(delta).min()), 3)
  0.1
  """
  del model  # The noise does not depend on it.
  return fixed(constraints.linf(radius, start=distribution).init)
