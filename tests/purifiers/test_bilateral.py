"""The bilateral filter, pixel by pixel in NumPy."""

from __future__ import annotations

import numpy as np

from tests.purifiers.photographs import apply
from udp_jax import purifiers

PICTURE = np.random.default_rng(0).uniform(size=(12, 15, 3)).astype(np.float64)


def _bilateral(picture: np.ndarray, diameter: int, color: float, space: float) -> np.ndarray:
  """Tomasi and Manduchi's filter pixel by pixel, over a disc, borders mirrored (no edge twice)."""
  reach = diameter // 2
  height, width, _ = picture.shape
  padded = np.pad(picture, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
  total, weights = np.zeros_like(picture), np.zeros((height, width, 1))
  for dy in range(-reach, reach + 1):
    for dx in range(-reach, reach + 1):
      if dy * dy + dx * dx > reach * reach:
        continue
      near = padded[reach + dy : reach + dy + height, reach + dx : reach + dx + width]
      away = np.abs(near - picture).sum(-1, keepdims=True)
      weight = np.exp(-(away**2) / (2 * color**2) - (dy * dy + dx * dx) / (2 * space**2))
      total, weights = total + weight * near, weights + weight
  return total / weights


def test_passes_one_after_the_other() -> None:
  options = {"diameter": 5, "sigma_color": 0.3, "sigma_space": 2.0}
  expected = PICTURE
  for passes in (1, 2):
    expected = _bilateral(expected, 5, 0.3, 2.0)
    purifier = purifiers.build("bilateral", None, options | {"num_passes": passes})
    found = apply(purifier, PICTURE[None].astype(np.float32))[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_small_changes_go_and_edges_stay() -> None:
  edge = np.zeros((1, 16, 16, 3), np.float32) + 0.2
  edge[:, :, 8:] = 0.8
  noisy = edge + np.random.default_rng(0).normal(size=edge.shape).astype(np.float32) / 255
  found = apply(purifiers.build("bilateral", None, {"num_passes": 4}), noisy)
  assert np.abs(found - edge).mean() < 0.5 * np.abs(noisy - edge).mean()
  assert (found[:, :, 8] - found[:, :, 7]).min() > 0.55
