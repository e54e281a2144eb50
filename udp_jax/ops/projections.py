"""Perturbation budgets and steps, one image at a time.

Axis 0 is the batch, every norm is over the remaining axes, and `radius` is a scalar or (B,): an
image's result never depends on the other images in its batch. Radii are on the [0, 1] scale of the
images (8 levels of 255 is 8 / 255).

Both budget and box contain zero and are intervals or balls around it, so projecting on the budget
and then on the box satisfies both. NaN passes through every projection and step (only `masked` can
remove it): a diverged update must not come out as a valid-looking perturbation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def _per_image(radius: ArrayLike, ndim: int) -> jax.Array:
  """A scalar or (B,) radius with trailing axes of length one, to broadcast over images."""
  radius = jnp.asarray(radius, jnp.float32)
  if radius.ndim == 0:
    return radius
  if radius.ndim == 1:
    return radius.reshape(radius.shape + (1,) * (ndim - 1))
  raise ValueError(f"radius must be a scalar or have one entry per image, got shape {radius.shape}")


def _l2_norm(x: jax.Array) -> jax.Array:
  """(B, 1, ...) Euclidean norm per image, scaled first so that squares cannot overflow."""
  axes = tuple(range(1, x.ndim))
  largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True)
  scale = jnp.where(largest == 0.0, 1.0, largest)
  return largest * jnp.sqrt(jnp.sum((x / scale) ** 2, axis=axes, keepdims=True))


def linf(delta: jax.Array, radius: ArrayLike) -> jax.Array:
  """Projects each image's delta, (B, ...), on the L-infinity ball: |delta| <= radius."""
  bound = _per_image(radius, delta.ndim)
  return jnp.clip(delta, -bound, bound)


def l2(delta: jax.Array, radius: ArrayLike) -> jax.Array:
  """Projects each image's delta, (B, ...), on the Euclidean ball: ||delta||_2 <= radius."""
  norm = _l2_norm(delta)
  bound = _per_image(radius, delta.ndim)
  outside = norm > bound
  # NaN compares false, and then delta, itself NaN somewhere, is returned as it is.
  return jnp.where(outside, delta * (bound / jnp.where(outside, norm, 1.0)), delta)


def masked(delta: jax.Array, mask: ArrayLike) -> jax.Array:
  """Sets delta to zero where `mask` is zero.

  Args:
    delta: (B, H, W, C).
    mask: boolean or 0/1, broadcastable to delta, such as (H, W, 1) or (B, H, W, 1).
  """
  return jnp.where(jnp.asarray(mask) != 0, delta, jnp.zeros((), delta.dtype))


def grey(delta: jax.Array, is_grey: ArrayLike) -> jax.Array:
  """Makes the channels of grey pictures equal: the nearest such delta, their mean.

  The mean of values in an interval is in it, so what was in a budget and in the box stays there.

  Args:
    delta: (B, ..., C), or a gradient; pictures whose channels are equal in `images` too.
    is_grey: (B,) boolean or 0/1.
  """
  chosen = jnp.asarray(is_grey).reshape((-1,) + (1,) * (delta.ndim - 1)) != 0
  return jnp.where(chosen, jnp.mean(delta, axis=-1, keepdims=True), delta)


def first_channel(delta: jax.Array, is_grey: ArrayLike) -> jax.Array:
  """Gives all channels of grey pictures the first one's values.

  For random draws, whose mean over channels would be weaker. Arguments as for `grey`.
  """
  chosen = jnp.asarray(is_grey).reshape((-1,) + (1,) * (delta.ndim - 1)) != 0
  return jnp.where(chosen, delta[..., :1], delta)


def box(delta: jax.Array, images: jax.Array) -> jax.Array:
  """Shrinks delta, (B, ...), so that images + delta, with images in [0, 1], stays in [0, 1]."""
  return jnp.clip(delta, -images, 1.0 - images)


def sign_step(gradient: jax.Array) -> jax.Array:
  """The steepest ascent direction under L-infinity: -1, 0 or 1 per element."""
  return jnp.sign(gradient)


def l2_normalised(gradient: jax.Array) -> jax.Array:
  """The steepest ascent direction under L2: unit norm per image, and zero where it is zero."""
  axes = tuple(range(1, gradient.ndim))
  largest = jnp.max(jnp.abs(gradient), axis=axes, keepdims=True)
  scaled = gradient / jnp.where(largest == 0.0, 1.0, largest)
  # The norm of `scaled` is at least 1 unless the gradient is zero, where any divisor will do.
  norm = jnp.sqrt(jnp.sum(scaled**2, axis=axes, keepdims=True))
  return scaled / jnp.where(norm == 0.0, 1.0, norm)


def random_linf(key: jax.Array, shape: tuple[int, ...], radius: ArrayLike) -> jax.Array:
  """float32 `shape` (B, ...), uniform in the L-infinity ball of each image."""
  unit = jax.random.uniform(key, shape, jnp.float32, minval=-1.0, maxval=1.0)
  return _per_image(radius, len(shape)) * unit


def random_sign(key: jax.Array, shape: tuple[int, ...], radius: ArrayLike) -> jax.Array:
  """float32 `shape` (B, ...), each element -radius or +radius: a random corner of the ball."""
  return _per_image(radius, len(shape)) * jax.random.rademacher(key, shape, jnp.float32)


def random_l2(key: jax.Array, shape: tuple[int, ...], radius: ArrayLike) -> jax.Array:
  """float32 `shape` (B, ...), uniform in the volume of each image's Euclidean ball."""
  direction_key, length_key = jax.random.split(key)
  direction = l2_normalised(jax.random.normal(direction_key, shape, jnp.float32))
  dims = 1
  for size in shape[1:]:
    dims *= size
  fraction = jax.random.uniform(length_key, shape[:1], jnp.float32) ** (1.0 / max(dims, 1))
  scale = fraction.reshape(fraction.shape + (1,) * (len(shape) - 1))
  return _per_image(radius, len(shape)) * scale * direction
