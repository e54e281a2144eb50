"""Comparisons of pictures, batch by batch, against one whole computation."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import metrics as reference

from udp_jax.metrics.pictures import Comparison
from udp_jax.runtime import mesh


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
  generator = np.random.default_rng(0)
  clean = generator.integers(0, 256, (5, 16, 16, 3), np.uint8)
  noisy = np.clip(clean + generator.integers(-30, 31, clean.shape), 0, 255).astype(np.uint8)
  noisy[2] = clean[2]
  return clean, noisy


def test_values_are_those_of_scikit_image(pair) -> None:
  clean, noisy = pair
  compare = Comparison(None, per_device_batch_size=2, mesh=mesh.make_mesh())
  found = compare(clean, noisy)
  for i in range(5):
    rmse = np.sqrt(((clean[i].astype(float) - noisy[i]) ** 2).mean())
    assert found["rmse"][i] == pytest.approx(rmse, rel=1e-12)
    ssim = reference.structural_similarity(
      clean[i], noisy[i], channel_axis=-1, gaussian_weights=True, use_sample_covariance=False
    )
    # scikit-image counts the pixels near the border differently: only inside they agree.
    assert found["ssim"][i] == pytest.approx(ssim, abs=5e-3)
    if i != 2:
      psnr = reference.peak_signal_noise_ratio(clean[i], noisy[i])
      assert found["psnr"][i] == pytest.approx(psnr, abs=1e-3)
  assert np.isnan(found["psnr"][2]) and found["max_abs"][2] == 0
  # Too small for VIFp; and no perceptual distance was given.
  assert np.isnan(found["vif"]).all() and np.isnan(found["perceptual"]).all()


def test_shapes_must_agree(pair) -> None:
  compare = Comparison(None, per_device_batch_size=2, mesh=mesh.make_mesh())
  with pytest.raises(ValueError, match="cannot compare"):
    compare(pair[0], pair[1][:4])
