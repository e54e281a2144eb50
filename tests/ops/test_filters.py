"""Filters against loops over windows, scikit-image, closed forms, and what OpenCV says."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.restoration

from udp_jax.ops import filters


def picture(seed=0, shape=(2, 13, 17, 3), noise=0.04):
  generator = np.random.default_rng(seed)
  y, x = np.mgrid[: shape[1], : shape[2]]
  steps = 0.3 + 0.4 * ((x // 5 + y // 4) % 2)
  values = steps[None, :, :, None] + generator.normal(0, noise, shape)
  return np.clip(values, 0, 1).astype(np.float32)


def bilateral_loop(image, diameter, sigma_color, sigma_space):
  """OpenCV's definition, one pixel after the other, in float64."""
  reach = diameter // 2
  padded = np.pad(image.astype(np.float64), ((reach, reach), (reach, reach), (0, 0)), "reflect")
  out = np.empty_like(image, np.float64)
  for i in range(image.shape[0]):
    for j in range(image.shape[1]):
      total, weights = 0.0, 0.0
      for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
          if np.hypot(dy, dx) > reach:
            continue
          other = padded[i + reach + dy, j + reach + dx]
          color = np.abs(other - image[i, j]).sum()
          weight = np.exp(-(color**2) / (2 * sigma_color**2))
          weight *= np.exp(-(dy**2 + dx**2) / (2 * sigma_space**2))
          total, weights = total + weight * other, weights + weight
      out[i, j] = total / weights
  return out


@pytest.mark.parametrize(("channels", "diameter", "sigma_color"), [(3, 5, 0.1), (1, 7, 0.05)])
def test_bilateral_matches_the_loop(channels, diameter, sigma_color):
  images = picture(shape=(2, 13, 17, channels))
  options = {"diameter": diameter, "sigma_color": sigma_color, "sigma_space": 2.0}
  got = jax.jit(partial(filters.bilateral, **options))(images)
  for image, one in zip(images, got):
    np.testing.assert_allclose(one, bilateral_loop(image, diameter, sigma_color, 2.0), atol=2e-6)


def test_bilateral_smooths_noise_and_keeps_edges():
  clean = picture(noise=0.0)
  got = filters.bilateral(jnp.asarray(picture()), diameter=5, sigma_color=0.25, sigma_space=8.0)
  assert np.abs(got - clean).mean() < 0.6 * np.abs(picture() - clean).mean()
  # A wide range kernel is no edge-preserving filter any more.
  wide = filters.bilateral(jnp.asarray(clean), diameter=5, sigma_color=100.0, sigma_space=8.0)
  assert np.abs(wide - clean).max() > 0.1
  kept = filters.bilateral(jnp.asarray(clean), diameter=5, sigma_color=0.05, sigma_space=8.0)
  np.testing.assert_allclose(kept, clean, atol=1e-5)


def guided_loop(guide, image, radius, regulariser):
  """One ridge regression a window, one least-squares problem after the other."""
  h, w, c = image.shape
  pad = ((radius, radius), (radius, radius), (0, 0))
  # Every window's coefficients, windows that hang over the border included as OpenCV has them.
  padded_guide = np.pad(guide.astype(np.float64), pad, "symmetric")
  padded_image = np.pad(image.astype(np.float64), pad, "symmetric")
  side = 2 * radius + 1
  slopes, intercepts = np.empty((h, w, guide.shape[2], c)), np.empty((h, w, c))
  for i in range(h):
    for j in range(w):
      x = padded_guide[i : i + side, j : j + side].reshape(side * side, -1)
      y = padded_image[i : i + side, j : j + side].reshape(side * side, -1)
      centred = x - x.mean(0)
      gram = centred.T @ centred / len(x) + regulariser * np.eye(x.shape[1])
      slopes[i, j] = np.linalg.solve(gram, centred.T @ (y - y.mean(0)) / len(x))
      intercepts[i, j] = y.mean(0) - x.mean(0) @ slopes[i, j]
  out = np.zeros_like(image, np.float64)
  padded_slopes = np.pad(slopes, (*pad, (0, 0)), "symmetric")
  padded_intercepts = np.pad(intercepts, pad, "symmetric")
  for i in range(h):
    for j in range(w):
      slope = padded_slopes[i : i + side, j : j + side].mean((0, 1))
      out[i, j] = guide[i, j] @ slope + padded_intercepts[i : i + side, j : j + side].mean((0, 1))
  return out


@pytest.mark.parametrize(("guides", "channels"), [(3, 3), (3, 1), (1, 3)])
def test_guided_matches_the_loop(guides, channels):
  guide, images = picture(1, (2, 12, 11, guides)), picture(2, (2, 12, 11, channels), noise=0.1)
  got = jax.jit(partial(filters.guided, radius=2, regulariser=4e-4))(guide, images)
  for one_guide, image, one in zip(guide, images, got):
    np.testing.assert_allclose(one, guided_loop(one_guide, image, 2, 4e-4), atol=2e-5)


def test_box_mean_of_a_ramp():
  """Inside a ramp the mean is the value; a window at the border sees the mirrored edge."""
  ramp = jnp.arange(8.0).reshape(1, 1, 8, 1) * jnp.ones((1, 6, 1, 1))
  got = filters.box_mean(ramp, 1)[0, :, :, 0]
  np.testing.assert_allclose(got[:, 1:-1], np.tile(np.arange(1.0, 7), (6, 1)), rtol=1e-6)
  np.testing.assert_allclose(got[:, 0], 1 / 3, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.05, 0.2])
def test_total_variation_matches_scikit_image(weight):
  """Another algorithm (Chambolle 2004) for the same minimum."""
  images = picture(3, (2, 9, 11, 3))
  got = jax.jit(lambda x: filters.total_variation(x, weight=weight, num_steps=1500))(images)
  for image, one in zip(images, got):
    expected = skimage.restoration.denoise_tv_chambolle(
      image.astype(np.float64), weight=weight, eps=0, max_num_iter=8000, channel_axis=-1
    )
    np.testing.assert_allclose(one, expected, atol=2e-3)


def test_total_variation_of_a_step_in_closed_form():
  """Two flat halves of n rows approach each other by weight / n each."""
  step = jnp.where(jnp.arange(12)[:, None] < 4, 0.2, 0.8)[None, :, :, None] * jnp.ones(
    (1, 12, 5, 1)
  )
  got = filters.total_variation(step, weight=0.1, num_steps=2000)[0, :, :, 0]
  np.testing.assert_allclose(got[:4], 0.2 + 0.1 / 4, atol=1e-4)
  np.testing.assert_allclose(got[4:], 0.8 - 0.1 / 8, atol=1e-4)
  assert float(filters.total_variation_norm(step)[0]) == pytest.approx(0.6 * 5, rel=1e-5)


def test_total_variation_fills_in_what_is_masked():
  images = jnp.full((1, 16, 16, 1), 0.6).at[:, 5:8, 5:8].set(0.0)
  mask = jnp.ones_like(images).at[:, 5:8, 5:8].set(0.0)
  got = filters.total_variation(images, weight=0.01, num_steps=1500, mask=mask)
  np.testing.assert_allclose(got, 0.6, atol=2e-3)
  assert np.abs(filters.total_variation(images, weight=0.01) - 0.6).max() > 0.4


@pytest.mark.parametrize(
  "apply",
  [
    lambda x: filters.bilateral(x, diameter=5, sigma_color=0.1, sigma_space=3.0),
    lambda x: filters.guided(x, x, radius=2, regulariser=1e-3),
    lambda x: filters.total_variation(x, weight=0.1, num_steps=10),
  ],
)
def test_gradients_are_finite_and_right(apply):
  """Along one direction, against a central difference; flat areas included."""
  images = jnp.asarray(picture(4, (1, 9, 9, 1))).at[:, :4].set(0.5)
  target, direction = jnp.asarray(picture(5, (1, 9, 9, 1))), jnp.asarray(picture(6, (1, 9, 9, 1)))
  loss = jax.jit(lambda t: jnp.sum(target * apply(images + t * (direction - 0.5))))
  slope = float(jax.jit(jax.grad(loss))(0.0))
  whole = jax.jit(jax.grad(lambda x: jnp.sum(target * apply(x))))(images)
  assert np.isfinite(whole).all()
  expected = (float(loss(1e-2)) - float(loss(-1e-2))) / 2e-2
  assert slope == pytest.approx(expected, rel=0.05, abs=1e-2)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda x: filters.bilateral(x, diameter=4, sigma_color=1.0, sigma_space=1.0), "odd"),
    (lambda x: filters.bilateral(x, diameter=27, sigma_color=1.0, sigma_space=1.0), "fit"),
    (lambda x: filters.box_mean(x, 14), "fit"),
    (lambda x: filters.guided(x[..., :2], x, radius=1, regulariser=0.1), "1 or 3 channels"),
  ],
)
def test_bad_arguments(call, message):
  with pytest.raises(ValueError, match=message):
    call(jnp.asarray(picture()))
