"""Superpixels: pictures cut into compact regions of similar colour (SLIC)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# sRGB's primaries and D65's white: XYZ of linear RGB, each divided by the white's.
_XYZ = np.array(
  [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
_XYZ = (_XYZ / np.array([[0.95047], [1.0], [1.08883]])).astype(np.float32)


def to_lab(images: jax.Array) -> jax.Array:
  """Converts sRGB (..., 3) in [0, 1] to CIELAB under D65: L in [0, 100], a and b about +-100.

  >>> to_lab(jnp.array([1.0, 1.0, 1.0])).round(1).tolist()[0]
  100.0
  """
  low = images / 12.92
  high = jnp.power((jnp.maximum(images, 0.04045) + 0.055) / 1.055, 2.4)
  linear = jnp.where(images <= 0.04045, low, high)
  xyz = jnp.einsum("...j,ij->...i", linear, jnp.asarray(_XYZ), precision="highest")
  root = jnp.cbrt(jnp.maximum(xyz, 0.008856))
  f = jnp.where(xyz <= 0.008856, 7.787 * xyz + 16.0 / 116.0, root)
  x, y, z = f[..., 0], f[..., 1], f[..., 2]
  return jnp.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], axis=-1)


def grid(height: int, width: int, count: int) -> tuple[int, int]:
  """Returns (rows, columns) of about square cells for at most `count` superpixels.

  >>> grid(64, 64, 8), grid(32, 64, 8)
  ((2, 4), (2, 4))
  """
  rows = min(max(round((count * height / width) ** 0.5), 1), count, height)
  if rows > 1 and rows * (count // rows) <= 0.75 * count:
    rows -= 1
  return rows, min(count // rows, width)


def superpixels(
  images: jax.Array, count: int, *, compactness: float = 10.0, iterations: int = 10
) -> jax.Array:
  """Cuts every picture into superpixels by k-means over colour and place.

  SLIC (Achanta et al. 2012): the distance to a centre is (Lab distance)^2 + (compactness / side)^2
  (distance in pixels)^2 with the side of a grid's cell, whose middles are the first centres. Two
  things are left out: every pixel is compared with all centres, since there are few, and parts of
  a superpixel that lie apart stay parts of it.

  Args:
    images: (B, H, W, 3) float in [0, 1].
    count: most superpixels of a picture; `grid` says how many there are.
    compactness: weight of place beside colour.
    iterations: number of k-means steps.

  Returns:
    int32 (B, H, W), labels from 0 on; a picture may lack some.

  Raises:
    ValueError: there are no superpixels to make.

  >>> halves = jnp.zeros((1, 8, 8, 3)).at[:, :, 5:].set(1.0)
  >>> superpixels(halves, 2)[0, 0].tolist()
  [0, 0, 0, 0, 0, 1, 1, 1]
  """
  if count < 1:
    raise ValueError(f"count must be at least 1, got {count}")
  height, width = images.shape[1:3]
  rows, columns = grid(height, width, count)
  y, x = np.mgrid[:height, :width].astype(np.float32)
  side = (height * width / (rows * columns)) ** 0.5
  place = jnp.asarray(np.stack([y, x], axis=-1) * np.float32(compactness / side))
  first = np.stack(
    np.meshgrid(
      np.arange(rows) * height // rows + height // (2 * rows),
      np.arange(columns) * width // columns + width // (2 * columns),
      indexing="ij",
    )
  ).reshape(2, -1)

  def nearest(features: jax.Array, centres: jax.Array) -> jax.Array:
    def nearer(number: jax.Array, found: tuple[jax.Array, jax.Array]):
      least, label = found
      away = jnp.sum(jnp.square(features - centres[number][None, None]), axis=-1)
      closer = away < least
      return jnp.where(closer, away, least), jnp.where(closer, number, label)

    start = jnp.full(features.shape[:2], jnp.inf), jnp.zeros(features.shape[:2], jnp.int32)
    return jax.lax.fori_loop(0, rows * columns, nearer, start)[1]

  def one(picture: jax.Array) -> jax.Array:
    features = jnp.concatenate([to_lab(picture), place], axis=-1)

    def moved(centres: jax.Array, _) -> tuple[jax.Array, None]:
      labels = nearest(features, centres).reshape(-1)
      flat = features.reshape(-1, features.shape[-1])
      sums = jax.ops.segment_sum(flat, labels, num_segments=rows * columns)
      sizes = jax.ops.segment_sum(jnp.ones(len(flat)), labels, num_segments=rows * columns)[:, None]
      return jnp.where(sizes > 0, sums / jnp.maximum(sizes, 1.0), centres), None

    centres, _ = jax.lax.scan(moved, features[first[0], first[1]], None, length=iterations)
    return nearest(features, centres)

  return jax.vmap(one)(images)
