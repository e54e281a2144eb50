"""Grey pictures for the controls, and the perturbations that these make of them."""

from __future__ import annotations

import jax
import numpy as np

from udp_jax import protections
from udp_jax.data import batches

RADIUS_255 = 8


KEY = jax.random.key(0)


def delta_of(name, model, data, radius_255=RADIUS_255, **options):
  protection = protections.build(name, model, {"radius_255": radius_255} | options)
  return np.asarray(jax.jit(protection.init)(KEY, data, None).delta)


def with_reference(grey, size=4):
  return batches.make_batches(grey[0], size, reference=grey[1])
