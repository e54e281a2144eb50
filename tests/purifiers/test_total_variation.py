"""Total variation fills in what it dropped."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from tests.purifiers.photographs import apply
from udp_jax import purifiers


def test_total_variation_fills_dropped_pixels_in():
  """A flat picture stays flat, whichever pixels were left out."""
  images = jnp.full((2, 16, 16, 3), 0.4)
  purifier = purifiers.build("total_variation", None, {"drop_rate": 0.3})
  np.testing.assert_allclose(apply(purifier, images), images, atol=1e-5)
