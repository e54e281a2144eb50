"""Full-reference image quality metrics, one value per image.

All functions take two float arrays (B, H, W, C) of the same shape and return (B,) float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def _check_shapes(a: jax.Array, b: jax.Array) -> None:
  if a.ndim != 4 or a.shape != b.shape:
    raise ValueError(f"expected two (B, H, W, C) arrays of one shape, got {a.shape} and {b.shape}")


def psnr(a: jax.Array, b: jax.Array, *, data_range: float = 1.0) -> jax.Array:
  """Peak signal-to-noise ratio in decibels, (B,); infinite for identical images.

  Args:
    a: (B, H, W, C), images.
    b: (B, H, W, C), images to compare with `a`.
    data_range: largest minus smallest possible value, 1 for images in [0, 1].

  Raises:
    ValueError: the shapes differ or are not (B, H, W, C).

  >>> psnr(jnp.zeros((1, 8, 8, 3)), jnp.full((1, 8, 8, 3), 0.1)).round(2).tolist()
  [20.0]
  """
  _check_shapes(a, b)
  mse = jnp.mean(jnp.square(a - b), axis=(1, 2, 3))
  return 10.0 * jnp.log10(data_range**2 / mse)


def ssim(
  a: jax.Array,
  b: jax.Array,
  *,
  data_range: float = 1.0,
  window_size: int = 11,
  sigma: float = 1.5,
  k1: float = 0.01,
  k2: float = 0.03,
) -> jax.Array:
  """Structural similarity (Wang et al. 2004), (B,): the mean over channels and whole windows.

  It equals scikit-image's `structural_similarity` with `gaussian_weights=True` and
  `use_sample_covariance=False`.

  Args:
    a: (B, H, W, C), images.
    b: (B, H, W, C), images to compare with `a`.
    data_range: largest minus smallest possible value, 1 for images in [0, 1].
    window_size: side of the Gaussian window in pixels, odd.
    sigma: standard deviation of the window in pixels.
    k1: constant that stabilises the luminance term.
    k2: constant that stabilises the contrast-structure term.

  Raises:
    ValueError: the shapes differ, the window is even, or the images are smaller than the window.

  >>> images = jax.random.uniform(jax.random.key(0), (1, 16, 16, 3))
  >>> jax.jit(ssim)(images, images).round(4).tolist()
  [1.0]
  """
  _check_shapes(a, b)
  h, w = a.shape[1:3]
  if window_size % 2 == 0 or window_size < 1:
    raise ValueError(f"window_size must be odd and positive, got {window_size}")
  if min(h, w) < window_size:
    raise ValueError(
      f"SSIM needs images of at least {window_size}x{window_size} (its window), got {h}x{w}; "
      "pass a smaller window_size"
    )
  offsets = np.arange(window_size) - window_size // 2
  weights = np.exp(-0.5 * (offsets / sigma) ** 2)
  weights = (weights / weights.sum()).astype(np.float32)

  def average(x: jax.Array) -> jax.Array:
    rows = sum(weights[i] * x[:, i : h - window_size + 1 + i] for i in range(window_size))
    rows = jnp.asarray(rows)
    out = sum(weights[i] * rows[:, :, i : w - window_size + 1 + i] for i in range(window_size))
    return jnp.asarray(out)

  # Subtract the image's mean: variances do not change, and E[a^2] - E[a]^2 cancels far fewer digits
  # on bright flat areas.
  offset_a = jnp.mean(a, axis=(1, 2), keepdims=True)
  offset_b = jnp.mean(b, axis=(1, 2), keepdims=True)
  a, b = a - offset_a, b - offset_b
  mean_a, mean_b = average(a), average(b)
  var_a = average(a * a) - mean_a * mean_a
  var_b = average(b * b) - mean_b * mean_b
  covariance = average(a * b) - mean_a * mean_b
  mean_a, mean_b = mean_a + offset_a, mean_b + offset_b

  c1, c2 = (k1 * data_range) ** 2, (k2 * data_range) ** 2
  luminance = (2.0 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
  structure = (2.0 * covariance + c2) / (var_a + var_b + c2)
  return jnp.mean(luminance * structure, axis=(1, 2, 3))


def _gaussian_means(x: jax.Array, size: int) -> jax.Array:
  """Averages (B, H, W, C) over whole windows with a Gaussian of sigma = size / 5."""
  offsets = np.arange(size) - size // 2
  weights = np.exp(-0.5 * (offsets / (size / 5.0)) ** 2)
  weights = (weights / weights.sum()).astype(np.float32)
  h, w = x.shape[1] - size + 1, x.shape[2] - size + 1
  rows = jnp.asarray(sum(weights[i] * x[:, i : i + h] for i in range(size)))
  return jnp.asarray(sum(weights[i] * rows[:, :, i : i + w] for i in range(size)))


def vif_p(
  a: jax.Array, b: jax.Array, *, data_range: float = 1.0, noise_variance: float = 2.0
) -> jax.Array:
  """Visual information fidelity in the pixel domain (Sheikh & Bovik 2006), (B,).

  The information about the reference `a` that `b` keeps, at four scales: 1 for identical images,
  above 1 for raised contrast, NaN for a flat reference; not symmetric. It equals `sewar.vifp`, as
  the mean over channels.

  Args:
    a: (B, H, W, C), reference images.
    b: (B, H, W, C), images to judge.
    data_range: largest minus smallest possible value, 1 for images in [0, 1].
    noise_variance: variance of the observer's noise on the scale [0, 255].

  Raises:
    ValueError: the shapes differ, or the images have a side below 41 pixels.

  >>> images = jax.random.uniform(jax.random.key(0), (1, 41, 41, 3))
  >>> jax.jit(vif_p)(images, images).round(4).tolist()
  [1.0]
  """
  _check_shapes(a, b)
  if min(a.shape[1:3]) < 41:
    raise ValueError(f"VIFp needs images of at least 41x41, got {a.shape[1]}x{a.shape[2]}")
  tiny = 1e-10
  # Only variances matter, and their float32 form loses fewer digits without the means. Likewise for
  # the part of b not shared with a, computed from the difference: exactly 0 if both are equal.
  a, b = (255.0 / data_range * (x - jnp.mean(x, axis=(1, 2), keepdims=True)) for x in (a, b))
  kept = jnp.zeros(a.shape[:1] + a.shape[-1:])
  whole = jnp.zeros_like(kept)
  for scale in range(4):
    size = 2 ** (4 - scale) + 1
    if scale:
      a, b = jnp.split(_gaussian_means(jnp.concatenate([a, b]), size)[:, ::2, ::2], 2)
    d = b - a
    fields = jnp.concatenate([a, b, d, a * a, b * b, d * d, a * d])  # One filter, a small program.
    mean_a, mean_b, mean_d, *squares = jnp.split(_gaussian_means(fields, size), 7)
    var_a = jnp.maximum(squares[0] - mean_a * mean_a, 0.0)
    var_b = jnp.maximum(squares[1] - mean_b * mean_b, 0.0)
    var_d = jnp.maximum(squares[2] - mean_d * mean_d, 0.0)
    covariance = squares[3] - mean_a * mean_d
    # Per window: d = slope * a + rest, and b = (1 + slope) * a + rest.
    slope = covariance / (var_a + tiny)
    gain = jnp.where((var_a < tiny) | (var_b < tiny), 0.0, 1.0 + slope)
    rest = jnp.where(var_a < tiny, var_b, var_d - slope * covariance)
    rest = jnp.where(var_b < tiny, 0.0, rest)
    rest = jnp.where(gain < 0.0, var_b, rest)
    gain = jnp.maximum(gain, 0.0)
    var_a = jnp.where(var_a < tiny, 0.0, var_a)
    signal = gain * gain * var_a / (jnp.maximum(rest, tiny) + noise_variance)
    kept = kept + jnp.sum(jnp.log1p(signal), axis=(1, 2))
    whole = whole + jnp.sum(jnp.log1p(var_a / noise_variance), axis=(1, 2))
  return jnp.mean(kept / whole, axis=-1)
