"""Noise of a known size."""

from __future__ import annotations

import numpy as np
import pytest

from tests.purifiers.photographs import KEYS, apply
from udp_jax import purifiers


@pytest.mark.parametrize("std", [0.02, 0.1])
def test_the_noise_has_the_deviation_that_was_asked_for(std: float) -> None:
  grey = np.full((6, 40, 40, 3), 0.5, np.float32)
  noise = apply(purifiers.build("gaussian_noise", None, {"std": std}), grey) - 0.5
  np.testing.assert_allclose(noise.std((1, 2, 3)), std, rtol=0.05)
  np.testing.assert_allclose(noise.mean((1, 2, 3)), 0, atol=5 * std / 69)
  # Each picture by its own key: the same key gives the same noise.
  assert np.abs(noise[0] - noise[1]).max() > std
  again = apply(purifiers.build("gaussian_noise", None, {"std": std}), grey[:1], KEYS[1:])
  np.testing.assert_allclose(again[0] - 0.5, noise[1], atol=1e-6)


def test_what_leaves_the_range_is_cut() -> None:
  found = apply(purifiers.build("gaussian_noise", None, {"std": 0.1}), np.ones((1, 8, 8, 3)))
  assert found.max() == 1.0 and 0.3 < (found == 1.0).mean() < 0.7
