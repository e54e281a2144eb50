"""Linear operators that keep a band of a picture's frequencies: a Gaussian low-pass, a DCT range.

Borders are mirrored with the edge repeated (scipy's "reflect"), as the cosines of the DCT-II are.
Both operators are diagonal in that basis, so each is its own adjoint, <u, B v> = <B u, v>, and the
gradient of f(B p) with respect to p is B applied to the gradient of f. They act on each channel of
each picture alone, as products with one small matrix for each axis.

Frequencies are shares of the highest one: 1 is half a period a pixel, along an axis.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np


def gaussian_band(images: jax.Array, sigma: float) -> jax.Array:
  """Blurs each channel with a Gaussian that ends at 4 sigma (scipy's `gaussian_filter`).

  Unlike `ops.image.gaussian_blur` it is self-adjoint, and may be wider than the picture.

  Args:
    images: (B, H, W, C) float.
    sigma: standard deviation in pixels, positive.

  Raises:
    ValueError: sigma is not positive.

  >>> spike = jnp.zeros((1, 9, 9, 1)).at[0, 0, 4].set(1.0)
  >>> blurred = jax.jit(lambda x: gaussian_band(x, 2.0))(spike)
  >>> float(blurred.sum().round(3)), bool(blurred.max() < 0.2)
  (1.0, True)
  """
  if not sigma > 0:
    raise ValueError(f"sigma must be positive, got {sigma}")
  rows, columns = (_gaussian(length, sigma) for length in images.shape[1:3])
  return _along_axes(images, rows, columns)


def dct_band(images: jax.Array, low: float, high: float) -> jax.Array:
  """Keeps the cosines whose frequency is in [low, high), by its length over both axes.

  Args:
    images: (B, H, W, C) float.
    low: lowest frequency that is kept; 0 keeps the mean.
    high: lowest frequency that is not kept; 1.5 and more keep all above `low`.

  Raises:
    ValueError: the range is empty.

  >>> stripes = jnp.array([1.0, -1.0] * 4).reshape(1, 1, 8, 1) * jnp.ones((1, 8, 1, 1)) + 0.5
  >>> float(dct_band(stripes, 0.0, 0.1)[0, 0, 0, 0].round(3))
  0.5
  """
  kept = _in_range(images.shape[1:3], low, high)
  rows, columns = (_cosines(length) for length in images.shape[1:3])
  found = _along_axes(images, rows, columns)
  return _along_axes(jnp.asarray(kept) * found, rows.T, columns.T)


def energy_share(images: jax.Array, low: float, high: float) -> jax.Array:
  """Share of each picture's energy (sum of squares) in a range of frequencies, (B,) in [0, 1].

  Arguments and errors as of `dct_band`. A picture of zeros has a share of 0.

  >>> float(energy_share(jnp.ones((1, 8, 8, 3)), 0.0, 0.1)[0].round(3))
  1.0
  """
  kept = _in_range(images.shape[1:3], low, high)
  rows, columns = (_cosines(length) for length in images.shape[1:3])
  energy = jnp.square(_along_axes(images, rows, columns))
  total = energy.sum((1, 2, 3))
  return (kept * energy).sum((1, 2, 3)) / jnp.where(total == 0.0, 1.0, total)


def _along_axes(images: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
  """Multiplies the columns of each picture by `rows` (H, H), its rows by `columns` (W, W)."""
  # Fewer bits would leak what the band takes away.
  turned = jnp.einsum("hi,biwc->bhwc", jnp.asarray(rows, images.dtype), images, precision="highest")
  return jnp.einsum(
    "wj,bhjc->bhwc", jnp.asarray(columns, images.dtype), turned, precision="highest"
  )


@functools.lru_cache(maxsize=32)
def _gaussian(length: int, sigma: float) -> np.ndarray:
  """The blur along an axis as a symmetric matrix (length, length)."""
  reach = int(4.0 * sigma + 0.5)
  offsets = np.arange(-reach, reach + 1)
  weights = np.exp(-0.5 * np.square(offsets / sigma))
  weights /= weights.sum()
  places = (np.arange(length)[:, None] + offsets) % (2 * length)
  places = np.minimum(places, 2 * length - 1 - places)
  matrix = np.zeros((length, length))
  np.add.at(matrix, (np.arange(length)[:, None], places), weights)
  return matrix.astype(np.float32)


@functools.lru_cache(maxsize=32)
def _cosines(length: int) -> np.ndarray:
  """The orthonormal DCT-II as a matrix (frequencies, places)."""
  frequencies, places = np.mgrid[:length, :length]
  matrix = np.cos(np.pi * frequencies * (places + 0.5) / length) * np.sqrt(2.0 / length)
  matrix[0] /= np.sqrt(2.0)
  return matrix.astype(np.float32)


def _in_range(size: tuple[int, ...], low: float, high: float) -> np.ndarray:
  """1 for the frequencies in [low, high), else 0: (1, H, W, 1)."""
  if not 0 <= low < high:
    raise ValueError(f"frequencies from {low} to {high} are no range")
  rows, columns = (np.arange(length) / length for length in size)
  length = np.hypot(rows[:, None], columns)
  return ((low <= length) & (length < high)).astype(np.float32)[None, :, :, None]
