"""How visible a change is, against scikit-image and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from udp_jax.metrics import visibility


def some_pictures(shape=(5, 16, 16, 3), seed=0):
  generator = np.random.default_rng(seed)
  clean = generator.integers(0, 256, shape).astype(np.uint8)
  noise = generator.integers(-8, 9, shape)
  noise[0] = 0
  return clean, np.clip(clean.astype(int) + noise, 0, 255).astype(np.uint8)


def test_picture_metrics_against_scikit_image():
  clean, protected = some_pictures()
  metrics = visibility.picture_metrics(clean, protected, 8)
  # The untouched first picture would have an infinite PSNR.
  psnr = [peak_signal_noise_ratio(c, p) for c, p in zip(clean[1:], protected[1:], strict=True)]
  options = {"gaussian_weights": True, "use_sample_covariance": False, "channel_axis": 2}
  ssim = [structural_similarity(c, p, **options) for c, p in zip(clean, protected, strict=True)]
  difference = protected.astype(float) - clean
  assert metrics["psnr"] == pytest.approx(np.mean(psnr), abs=1e-3)
  assert metrics["ssim"] == pytest.approx(np.mean(ssim), abs=1e-5)
  assert metrics["rms_ratio"] == pytest.approx(np.sqrt(np.mean(difference**2)) / 8)
  assert metrics["max_abs_255"] == 8


def test_picture_metrics_of_the_corner_cases():
  clean, protected = some_pictures((3, 8, 8, 3))
  same = visibility.picture_metrics(clean, clean, 8)
  assert np.isnan(same["psnr"]) and same["rms_ratio"] == same["max_abs_255"] == 0
  assert np.isnan(visibility.picture_metrics(clean, protected, 8)["ssim"])  # Below the window.
  black = np.zeros((1, 16, 16, 3), np.uint8)
  everywhere = visibility.picture_metrics(black, black + 16, 16)
  assert everywhere["rms_ratio"] == pytest.approx(1.0) and everywhere["max_abs_255"] == 16
  # Differences of unsigned bytes must not wrap around.
  assert visibility.picture_metrics(black + 255, black, 16)["max_abs_255"] == 255


def test_picture_metrics_do_not_depend_on_how_many_at_a_time():
  clean, protected = some_pictures((5, 8, 8, 3))
  many = [np.tile(a, (110, 1, 1, 1)) for a in (clean, protected)]
  few, all_of_them = (visibility.picture_metrics(*pair, 8) for pair in ((clean, protected), many))
  assert all_of_them == pytest.approx(few, rel=1e-5, nan_ok=True)
