"""Regions of pictures: how deep a pixel lies in one, and regions with a random, smaller contour."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from udp_jax.ops.image import blur_matrix
from udp_jax.ops.keys import normal_each, split_each


def depth(inside: ArrayLike) -> jax.Array:
  """Euclidean distance of every pixel to the nearest one outside; 0 outside.

  Beyond the picture everything is outside.

  Args:
    inside: (B, H, W) boolean or 0/1.

  Returns:
    (B, H, W) float32, in pixels.

  >>> depth(jnp.ones((1, 3, 5)))[0, 1].tolist()
  [1.0, 2.0, 2.0, 2.0, 1.0]
  """
  padded = jnp.pad(jnp.asarray(inside).astype(bool), ((0, 0), (1, 1), (1, 1)))
  _, height, width = padded.shape
  row = jnp.broadcast_to(jnp.arange(height)[None, :, None], padded.shape)
  above = row - jax.lax.cummax(jnp.where(padded, 0, row), axis=1)
  below = jax.lax.cummin(jnp.where(padded, height - 1, row), axis=1, reverse=True) - row
  vertical = jnp.square(jnp.minimum(above, below))
  column = jnp.arange(width)[None, None]

  def nearer(number: jax.Array, least: jax.Array) -> jax.Array:
    there = jax.lax.dynamic_slice_in_dim(vertical, number, 1, axis=2)
    return jnp.minimum(least, there + jnp.square(column - number))

  squares = jax.lax.fori_loop(0, width, nearer, vertical)
  return jnp.sqrt(squares.astype(jnp.float32))[:, 1:-1, 1:-1]


def shrunk(keys: jax.Array, inside: ArrayLike, *, strength: float, smoothness: float) -> jax.Array:
  """Draws regions whose contour lies within the given one, at a depth that changes along it.

  With R the radius of a circle of the region's area, the depth is strength * u * v: u is uniform in
  [0, R] and the same for the picture, v is uniform in [0, 1] and changes over smoothness * R
  pixels. At most nine tenths of the deepest place are taken, so that no region disappears.

  Args:
    keys: (B,), one per picture.
    inside: (B, H, W) boolean or 0/1.
    strength: 0 changes nothing.
    smoothness: length over which the depth changes, as a share of R; positive.

  Returns:
    (B, H, W) boolean.

  >>> disc = jnp.ones((1, 8, 8))
  >>> smaller = shrunk(jax.random.split(jax.random.key(0), 1), disc, strength=1.0, smoothness=0.1)
  >>> bool(smaller.any()), bool((smaller <= disc.astype(bool)).all())
  (True, True)
  """
  inside = jnp.asarray(inside).astype(bool)
  key_depth, key_field = split_each(keys, 2)
  height, width = inside.shape[1:]
  radius = jnp.sqrt(jnp.sum(inside, axis=(1, 2)).astype(jnp.float32) / jnp.pi)
  sigmas = jnp.maximum(smoothness * radius, 0.1)
  rows, columns = (blur_matrix(size, sigmas, reach=size - 1) for size in (height, width))
  field = normal_each(key_field, (height, width))
  field = jnp.einsum("bij,bjk,blk->bil", rows, field, columns, precision="highest")
  field = field - jnp.mean(field, axis=(1, 2), keepdims=True)
  field = field / jnp.maximum(jnp.std(field, axis=(1, 2), keepdims=True), 1e-6)
  # Its normal distribution function: uniform in [0, 1].
  level = 0.5 * (1.0 + jax.lax.erf(field / 2.0**0.5))
  most = strength * radius * jax.vmap(jax.random.uniform)(key_depth)
  deep = depth(inside)
  limit = 0.9 * jnp.max(deep, axis=(1, 2))
  return deep > jnp.minimum(most[:, None, None] * level, limit[:, None, None])
