"""The noise that every protection has to beat."""

from __future__ import annotations

import numpy as np
import pytest

from tests.protections.controls import RADIUS_255, delta_of
from udp_jax import protections
from udp_jax.data import batches
from udp_jax.errors import ConfigError


@pytest.mark.parametrize("distribution", ["uniform", "sign"])
def test_random_noise(distribution, grey, gaussian_model):
  data = batches.make_batches(grey[0], 5)
  delta = 255 * delta_of("random_noise", gaussian_model, data, distribution=distribution)
  if distribution == "sign":
    np.testing.assert_allclose(np.abs(delta), RADIUS_255, rtol=1e-6)
  else:
    quantiles = np.quantile(delta, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(quantiles, [-8, -4, 0, 4, 8], atol=0.8)
  assert abs(delta.mean()) < 5 * RADIUS_255 / np.sqrt(delta.size)


def test_random_noise_of_an_unknown_kind(gaussian_model):
  with pytest.raises(ConfigError, match="'pink'; known: zero, uniform, sign"):
    protections.build("random_noise", gaussian_model, {"radius_255": 8, "distribution": "pink"})
