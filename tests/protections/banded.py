"""Steps of a band along a gradient that is always the same."""

from __future__ import annotations

import jax
import numpy as np

from udp_jax import protections
from udp_jax.data import batches
from udp_jax.protections import constraints
from udp_jax.protections.options import Spectrum

KEY = jax.random.key(6)
RADIUS, STEP = 6 / 255, 1 / 255
KINDS = {
  "gaussian": Spectrum("gaussian", band_sigma=1.5),
  "dct": Spectrum("dct", band_low=0.1, band_high=0.5),
  "pyramid": Spectrum("pyramid", band_sigma=0.8, band_shares="0.6,0.4"),
}
PARTS = np.random.default_rng(3).normal(0, 1, (1, 12, 16, 3)).astype(np.float32)


def grey_batch(**leaves):
  pictures = np.full((1, 12, 16, 3), 128, np.uint8)
  return jax.tree.map(lambda leaf: leaf[0], batches.make_batches(pictures, 1, **leaves))


def pulled_by(towards, kind, steps=1, start="zero", **leaves):
  """The state after some steps along a gradient that is always the same."""

  def objective(params, images, cond, keys):
    return -(images * towards).sum((1, 2, 3)), {}

  constraint = constraints.linf(RADIUS, start=start, spectrum=KINDS[kind])
  method = protections.pgd(objective, constraint, protections.sign_descent(STEP))
  batch = grey_batch(**leaves)
  state = method.init(KEY, batch, None)
  for _ in range(steps):
    state, _ = jax.jit(method.update)(KEY, state, batch, None)
  return state, constraint.band
