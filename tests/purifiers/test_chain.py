"""Purifiers one after the other."""

from __future__ import annotations

import numpy as np

from tests.purifiers.photographs import apply, photograph
from udp_jax import purifiers
from udp_jax.ops.image import to_float


def test_chain_is_the_composition():
  images = to_float(photograph())
  methods = [{"name": "gaussian_blur", "sigma": 0.8}, {"name": "jpeg", "quality": 40}]
  chained = apply(purifiers.build("chain", None, {"methods": methods}), images)
  blurred = apply(purifiers.build("gaussian_blur", None, {"sigma": 0.8}), images)
  expected = apply(purifiers.build("jpeg", None, {"quality": 40}), blurred)
  np.testing.assert_array_equal(chained, expected)
