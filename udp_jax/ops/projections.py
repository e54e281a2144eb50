"""Perturbation budgets and steps, computed separately for each image.

Axis 0 is the batch, norms run over the remaining axes, and `radius` is a scalar or (B,), so an
image's result never depends on other images in its batch. Radii are on the [0, 1] scale of the
images (8 levels of 255 are 8 / 255).

Budget and box both contain zero and are intervals or balls around it, so projecting on the budget
and then on the box satisfies both. NaN passes through every projection and step (only `masked` can
remove it), so that a diverged update does not look like a valid perturbation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def _per_image(radius: ArrayLike, ndim: int) -> jax.Array:
  """Reshapes a scalar or (B,) radius with trailing axes of length one, to broadcast over images."""
  radius = jnp.asarray(radius, jnp.float32)
  if radius.ndim == 0:
    return radius
  if radius.ndim == 1:
    return radius.reshape(radius.shape + (1,) * (ndim - 1))
  raise ValueError(f"radius must be a scalar or have one entry per image, got shape {radius.shape}")


def _l2_norm(x: jax.Array) -> jax.Array:
  """Euclidean norm per image, (B, 1, ...); scaling first keeps squares from overflowing."""
  axes = tuple(range(1, x.ndim))
  largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True)
  scale = jnp.where(largest == 0.0, 1.0, largest)
  return largest * jnp.sqrt(jnp.sum((x / scale) ** 2, axis=axes, keepdims=True))


def linf(delta: jax.Array, radius: ArrayLike) -> jax.Array:
  """Projects each image's delta, (B, ...), onto the L-infinity ball: |delta| <= radius.

  >>> linf(jnp.array([[0.5, -0.125]]), 0.25).tolist()
  [[0.25, -0.125]]
  """
  bound = _per_image(radius, delta.ndim)
  return jnp.clip(delta, -bound, bound)


def l2(delta: jax.Array, radius: ArrayLike) -> jax.Array:
  """Projects each image's delta, (B, ...), onto the Euclidean ball: ||delta||_2 <= radius.

  >>> l2(jnp.array([[3.0, 4.0], [0.5, 0.0]]), 2.5).tolist()
  [[1.5, 2.0], [0.5, 0.0]]
  """
  norm = _l2_norm(delta)
  bound = _per_image(radius, delta.ndim)
  outside = norm > bound
  # NaN compares false, so a delta that contains NaN is returned unchanged.
  return jnp.where(outside, delta * (bound / jnp.where(outside, norm, 1.0)), delta)


def masked(delta: jax.Array, mask: ArrayLike) -> jax.Array:
  """Sets delta to zero where `mask` is zero.

  Args:
    delta: (B, H, W, C), perturbation.
    mask: boolean or 0/1, broadcastable to delta, such as (H, W, 1) or (B, H, W, 1).

  >>> mask = jnp.array([0, 1]).reshape(1, 1, 2, 1)
  >>> masked(jnp.ones((1, 1, 2, 1)), mask).flatten().tolist()
  [0.0, 1.0]
  """
  return jnp.where(jnp.asarray(mask).astype(bool), delta, jnp.zeros((), delta.dtype))


def grey(delta: jax.Array, is_grey: ArrayLike) -> jax.Array:
  """Makes the channels of grey pictures equal, by their mean, the nearest such delta.

  The mean of values in an interval lies in the interval, so budget and box still hold.

  Args:
    delta: (B, ..., C), perturbation or gradient; grey pictures must be grey in `images` too.
    is_grey: (B,) boolean or 0/1, whether each picture is grey.

  >>> grey(jnp.array([[0.0, 3.0, 6.0], [0.0, 3.0, 6.0]]), jnp.array([True, False])).tolist()
  [[3.0, 3.0, 3.0], [0.0, 3.0, 6.0]]
  """
  chosen = jnp.asarray(is_grey).reshape((-1,) + (1,) * (delta.ndim - 1)).astype(bool)
  return jnp.where(chosen, jnp.mean(delta, axis=-1, keepdims=True), delta)


def first_channel(delta: jax.Array, is_grey: ArrayLike) -> jax.Array:
  """Sets all channels of grey pictures to the values of the first channel.

  Use it for random draws, whose mean over channels would be weaker. Arguments as in `grey`.

  >>> first_channel(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([True])).tolist()
  [[1.0, 1.0, 1.0]]
  """
  chosen = jnp.asarray(is_grey).reshape((-1,) + (1,) * (delta.ndim - 1)).astype(bool)
  return jnp.where(chosen, delta[..., :1], delta)


def box(delta: jax.Array, images: jax.Array) -> jax.Array:
  """Clips delta, (B, ...), so that images + delta stays in [0, 1], for images in [0, 1].

  >>> box(jnp.array([[0.5, -0.5]]), jnp.array([[0.75, 0.25]])).tolist()
  [[0.25, -0.25]]
  """
  return jnp.clip(delta, -images, 1.0 - images)


def sign_step(gradient: jax.Array) -> jax.Array:
  """The steepest ascent direction under L-infinity: -1, 0 or 1 per element.

  >>> sign_step(jnp.array([[0.2, -3.0, 0.0]])).tolist()
  [[1.0, -1.0, 0.0]]
  """
  return jnp.sign(gradient)


def l2_normalised(gradient: jax.Array) -> jax.Array:
  """The steepest ascent direction under L2: unit norm per image; a zero gradient stays zero.

  >>> l2_normalised(jnp.array([[0.0, 5.0]])).tolist()
  [[0.0, 1.0]]
  """
  axes = tuple(range(1, gradient.ndim))
  largest = jnp.max(jnp.abs(gradient), axis=axes, keepdims=True)
  scaled = gradient / jnp.where(largest == 0.0, 1.0, largest)
  # `scaled` has a norm of at least 1 unless the gradient is zero, where any divisor works.
  norm = jnp.sqrt(jnp.sum(scaled**2, axis=axes, keepdims=True))
  return scaled / jnp.where(norm == 0.0, 1.0, norm)


def random_linf(key: jax.Array, shape: tuple[int, ...], radius: ArrayLike) -> jax.Array:
  """Draws float32 `shape` (B, ...), uniform in each image's L-infinity ball.

  >>> delta = random_linf(jax.random.key(0), (4, 8, 8, 3), 0.1)
  >>> bool(jnp.abs(delta).max() <= 0.1)
  True
  """
  unit = jax.random.uniform(key, shape, jnp.float32, minval=-1.0, maxval=1.0)
  return _per_image(radius, len(shape)) * unit


def random_sign(key: jax.Array, shape: tuple[int, ...], radius: ArrayLike) -> jax.Array:
  """Draws float32 `shape` (B, ...), each element -radius or +radius: a random corner of the ball.

  >>> sorted(set(random_sign(jax.random.key(0), (1, 50), 0.5).flatten().tolist()))
  [-0.5, 0.5]
  """
  return _per_image(radius, len(shape)) * jax.random.rademacher(key, shape, jnp.float32)


def random_l2(key: jax.Array, shape: tuple[int, ...], radius: ArrayLike) -> jax.Array:
  """Draws float32 `shape` (B, ...), uniform in the volume of each image's Euclidean ball.

  >>> delta = random_l2(jax.random.key(0), (4, 100), 2.0)
  >>> bool(jnp.linalg.norm(delta, axis=1).max() <= 2.0)
  True
  """
  direction_key, length_key = jax.random.split(key)
  direction = l2_normalised(jax.random.normal(direction_key, shape, jnp.float32))
  dims = 1
  for size in shape[1:]:
    dims *= size
  fraction = jax.random.uniform(length_key, shape[:1], jnp.float32) ** (1.0 / max(dims, 1))
  scale = fraction.reshape(fraction.shape + (1,) * (len(shape) - 1))
  return _per_image(radius, len(shape)) * scale * direction
