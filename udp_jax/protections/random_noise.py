"""Random noise: the control that every protection has to beat."""

from __future__ import annotations

import jax

from udp_jax.models.base import DiffusionModel
from udp_jax.protections import constraints
from udp_jax.protections.base import Protection, fixed
from udp_jax.protections.options import Spectrum


def random_noise(
  model: DiffusionModel,
  *,
  radius: float,
  distribution: str = "uniform",
  spectrum: Spectrum = Spectrum(),
) -> Protection:
  """Independent noise on every pixel and channel, drawn once; in a band, noise of that band.

  Args:
    model: unused.
    radius: L-inf budget on the [0, 1] scale.
    distribution: "uniform" in [-radius, radius], or "sign": each value is +radius or -radius.
    spectrum: the band of frequencies, the control of methods in that band. Its values are as large
      in the mean as without it, before the few that exceed the budget are clipped.

  Raises:
    ConfigError: the distribution is unknown, or the band cannot be used.

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
  constraint = constraints.linf(radius, start=distribution, spectrum=spectrum)

  def draw(keys: jax.Array, images: jax.Array) -> jax.Array:
    drawn, band = constraint.init(keys, images), constraint.band
    return drawn if band is None else constraint.project(band.made(band.start(drawn)), images)

  return fixed(draw)
