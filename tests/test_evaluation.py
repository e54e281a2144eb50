"""Evaluation against scikit-image, NumPy and sets whose distance is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from udp_jax import evaluation


def some_pictures(shape=(5, 16, 16, 3), seed=0):
  generator = np.random.default_rng(seed)
  clean = generator.integers(0, 256, shape).astype(np.uint8)
  noise = generator.integers(-8, 9, shape)
  noise[0] = 0
  return clean, np.clip(clean.astype(int) + noise, 0, 255).astype(np.uint8)


def test_picture_metrics_against_scikit_image():
  clean, protected = some_pictures()
  metrics = evaluation.picture_metrics(clean, protected, 8)
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
  same = evaluation.picture_metrics(clean, clean, 8)
  assert np.isnan(same["psnr"]) and same["rms_ratio"] == same["max_abs_255"] == 0
  assert np.isnan(evaluation.picture_metrics(clean, protected, 8)["ssim"])  # Below the window.
  black = np.zeros((1, 16, 16, 3), np.uint8)
  everywhere = evaluation.picture_metrics(black, black + 16, 16)
  assert everywhere["rms_ratio"] == pytest.approx(1.0) and everywhere["max_abs_255"] == 16
  # Differences of unsigned bytes must not wrap around.
  assert evaluation.picture_metrics(black + 255, black, 16)["max_abs_255"] == 255


def test_picture_metrics_do_not_depend_on_how_many_at_a_time():
  clean, protected = some_pictures((5, 8, 8, 3))
  many = [np.tile(a, (110, 1, 1, 1)) for a in (clean, protected)]
  few, all_of_them = (evaluation.picture_metrics(*pair, 8) for pair in ((clean, protected), many))
  assert all_of_them == pytest.approx(few, rel=1e-5, nan_ok=True)


def test_distribution_metrics():
  generator = np.random.default_rng(0)
  real = generator.normal(size=(300, 6))
  same = evaluation.distribution_metrics(real, real)
  assert same["fd"] == pytest.approx(0, abs=1e-8)
  assert same["precision"] == same["recall"] == 1
  assert set(same) == {"fd", "precision", "recall", "mmd", "mmd_se"}
  # Another sample of the same distribution is near, a shifted one is its shift away.
  near = evaluation.distribution_metrics(real, generator.normal(size=(300, 6)))
  shifted = evaluation.distribution_metrics(real, real + 5.0)
  assert near["fd"] < 1 and abs(near["mmd"]) < 5 * near["mmd_se"]
  assert shifted["fd"] == pytest.approx(6 * 25)
  assert shifted["precision"] == shifted["recall"] == 0
  assert shifted["mmd"] > 10 * shifted["mmd_se"] > 0


def test_statistics_are_the_mean_and_the_scatter():
  features = np.random.default_rng(0).normal(size=(50, 4))
  statistics = evaluation.statistics(features)
  np.testing.assert_allclose(statistics.mean, features.mean(0))
  np.testing.assert_allclose(statistics.m2 / 49, np.cov(features, rowvar=False))


def test_denoising_loss_depends_on_pictures_and_parameters_alone(gaussian_model, pictures):
  params = gaussian_model.init(jax.random.key(0))
  options = {"draws": 3, "seed": 1}
  loss = evaluation.denoising_loss(gaussian_model, **options)
  value = loss(params, pictures)
  assert loss(params, pictures) == value
  # 20 pictures in batches of 6 leave 4 places of padding.
  small = evaluation.denoising_loss(gaussian_model, per_device_batch_size=6, **options)
  assert small(params, pictures) == pytest.approx(value, rel=1e-6)
  knowing = params | {"mean": jnp.asarray(pictures.mean(0) / 127.5 - 1)}
  assert loss(knowing, pictures) < value


def test_denoising_loss_has_the_expectation_of_its_closed_form(gaussian_model):
  """Grey pictures and a model that is sure of them: the noise is recovered up to the spread."""
  grey = np.full((64, 8, 8, 3), 128, np.uint8)
  mean = jnp.full((8, 8, 3), 2 * 128 / 255 - 1)
  params = {"mean": mean, "log_spread": jnp.zeros(3)}
  loss = evaluation.denoising_loss(gaussian_model, draws=16)(params, grey)
  # noise_pred = sigma^2 noise / (signal^2 + sigma^2) = (1 - abar) noise.
  abar = np.asarray(gaussian_model.schedule.alphas_cumprod, np.float64)
  spread = np.std(abar**2) / np.sqrt(64 * 16)
  assert loss == pytest.approx(np.mean(abar**2), abs=5 * spread)


def test_summarise():
  summary = evaluation.summarise([1.0, np.float32(3.0), float("nan"), float("inf")])
  assert summary["mean"] == 2.0 and summary["std"] == pytest.approx(np.sqrt(2))
  assert len(summary["values"]) == 4
  assert evaluation.summarise([2.5]) == {"mean": 2.5, "std": None, "values": [2.5]}
  assert evaluation.summarise([float("nan")])["mean"] is None
  assert evaluation.summarise([]) == {"mean": None, "std": None, "values": []}
