"""PSNR and SSIM against scikit-image, VIFp against frozen values of sewar, known values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from udp_jax.ops import similarity


def _pair(shape, noise=0.05, seed=0):
  generator = np.random.default_rng(seed)
  b, h, w, c = shape
  y, x = np.mgrid[:h, :w] / 8.0
  clean = 0.5 + 0.3 * np.sin(x + y * generator.uniform(0.5, 2, (b, 1, 1)))[..., None]
  clean = np.clip(clean + 0.05 * generator.normal(size=shape), 0, 1)
  other = np.clip(clean + noise * generator.normal(size=shape), 0, 1)
  return clean.astype(np.float32), other.astype(np.float32)


def _reference_ssim(a, b, sigma=1.5, data_range=1.0):
  return structural_similarity(
    a.astype(np.float64),
    b.astype(np.float64),
    gaussian_weights=True,
    sigma=sigma,
    use_sample_covariance=False,
    data_range=data_range,
    channel_axis=-1,
  )


@pytest.mark.parametrize("shape", [(3, 16, 16, 3), (2, 40, 23, 1), (1, 11, 11, 3)])
@pytest.mark.parametrize("noise", [0.01, 0.2])
def test_match_scikit_image(shape, noise):
  a, b = _pair(shape, noise)
  psnr, ssim = similarity.psnr(a, b), jax.jit(similarity.ssim)(a, b)
  assert psnr.shape == ssim.shape == shape[:1]
  for i in range(shape[0]):
    reference = peak_signal_noise_ratio(a[i].astype(np.float64), b[i], data_range=1.0)
    np.testing.assert_allclose(psnr[i], reference, rtol=1e-5)
    np.testing.assert_allclose(ssim[i], _reference_ssim(a[i], b[i]), atol=1e-5)


def test_ssim_on_bright_flat_images():
  # Where E[a^2] - E[a]^2 cancels worst in float32.
  a = np.full((1, 32, 32, 3), 0.98, np.float32)
  b = a + np.random.default_rng(1).normal(size=a.shape).astype(np.float32) * 0.004
  np.testing.assert_allclose(similarity.ssim(a, b)[0], _reference_ssim(a[0], b[0]), atol=1e-5)


def test_ssim_with_other_range_and_window():
  a, b = (255 * v for v in _pair((1, 32, 32, 3)))
  got = similarity.ssim(a, b, data_range=255.0)
  np.testing.assert_allclose(got[0], _reference_ssim(a[0], b[0], data_range=255.0), atol=1e-5)
  # scikit-image's window for sigma 0.9 reaches int(3.5 * 0.9 + 0.5) = 3 to each side.
  got = similarity.ssim(a, b, data_range=255.0, window_size=7, sigma=0.9)
  reference = _reference_ssim(a[0], b[0], sigma=0.9, data_range=255.0)
  np.testing.assert_allclose(got[0], reference, atol=1e-5)


def test_identical_images():
  a, _ = _pair((2, 16, 16, 3))
  assert np.all(np.isposinf(similarity.psnr(a, a)))
  np.testing.assert_allclose(similarity.ssim(a, a), 1.0, atol=1e-6)


def test_known_values():
  a = jnp.zeros((1, 12, 12, 3))
  # An offset of 0.1 everywhere: mse = 0.01, and SSIM is the luminance term alone.
  np.testing.assert_allclose(similarity.psnr(a, a + 0.1), 20.0, rtol=1e-5)
  np.testing.assert_allclose(similarity.ssim(a, a + 0.1), 1e-4 / (0.01 + 1e-4), rtol=1e-4)


def test_each_image_is_on_its_own():
  a, b = _pair((3, 16, 16, 3))
  b[0] = a[0]
  np.testing.assert_allclose(similarity.ssim(a, b)[1:], similarity.ssim(a[1:], b[1:]), rtol=1e-6)
  assert np.isinf(similarity.psnr(a, b)[0]) and np.isfinite(similarity.psnr(a, b)[1:]).all()


def test_bad_shapes_are_refused():
  small = jnp.zeros((1, 8, 32, 3))
  with pytest.raises(ValueError, match="11x11.*8x32"):
    similarity.ssim(small, small)
  assert similarity.ssim(small, small, window_size=7).shape == (1,)
  with pytest.raises(ValueError, match="odd"):
    similarity.ssim(small, small, window_size=6)
  for function in (similarity.psnr, similarity.ssim):
    with pytest.raises(ValueError, match="one shape"):
      function(jnp.zeros((2, 16, 16, 3)), jnp.zeros((1, 16, 16, 3)))
    with pytest.raises(ValueError, match="one shape"):
      function(jnp.zeros((16, 16, 3)), jnp.zeros((16, 16, 3)))


# `sewar.vifp` (0.4.10) of 8-bit versions of `_pair((3, 48, 61, 3), noise=..., seed=4)`.
VIFP = {
  0.01: [0.8153173, 0.8018802, 0.817885],
  0.05: [0.437134, 0.4033941, 0.4409062],
  0.2: [0.1463482, 0.1272059, 0.1493765],
}


@pytest.mark.parametrize("noise", VIFP)
def test_vif_p_is_sewars(noise):
  a, b = (
    np.round(255 * x).astype(np.uint8) / np.float32(255) for x in _pair((3, 48, 61, 3), noise, 4)
  )
  np.testing.assert_allclose(jax.jit(similarity.vif_p)(a, b), VIFP[noise], rtol=1e-4)


def test_vif_p_of_contrast_and_of_nothing():
  a, _ = _pair((2, 41, 50, 3))
  vif_p = jax.jit(similarity.vif_p, static_argnames="data_range")
  np.testing.assert_allclose(vif_p(a, a), 1.0, rtol=1e-6)
  assert (vif_p(a, 0.5 + 1.5 * (a - 0.5)) > 1.0).all()
  np.testing.assert_allclose(vif_p(a, np.full_like(a, 0.5)), 0.0, atol=1e-6)
  assert (vif_p(a, 1.0 - a) < 0.01).all()
  np.testing.assert_allclose(vif_p(3 * a, 3 * a + 0.1, data_range=3.0), 1.0, rtol=1e-4)
  with pytest.raises(ValueError, match="at least 41x41, got 40x50"):
    similarity.vif_p(a[:, :40], a[:, :40])
