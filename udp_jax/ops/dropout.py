"""Dropout with masks from a hash of the position, much cheaper than a counter-based generator.

Drawing masks with JAX's default generator (threefry) takes a sixth of a small U-Net's training step
on a CPU. Masks need less quality: two rounds of an integer hash decorrelate their elements. As a
function of seed and position alone, a mask also splits over devices without communication.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def hashed_bits(seeds: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Returns uniform 32-bit integers for each picture, for masks but not for statistics or secrets.

  Args:
    seeds: (B,) uint32, one per picture.
    shape: shape of one picture's integers, at most 2**32 elements.

  Returns:
    (B, *shape) uint32.

  >>> bits = hashed_bits(jnp.arange(2, dtype=jnp.uint32), (8, 8, 3))
  >>> bits.shape, bits.dtype
  ((2, 8, 8, 3), dtype('uint32'))
  """
  position = jnp.zeros((1, *shape), jnp.uint32)
  stride = 1
  for axis in range(len(shape), 0, -1):
    position += jax.lax.broadcasted_iota(jnp.uint32, position.shape, axis) * jnp.uint32(stride)
    stride *= shape[axis - 1]
  # Derive two seeds from each: one shifts the sequence, the other changes it.
  first, second = _mix(seeds), _mix(seeds + jnp.uint32(0x9E3779B9))
  column = (-1, *(1 for _ in shape))
  return _mix(_mix(position + first.reshape(column)) ^ second.reshape(column))


def _mix(x: jax.Array) -> jax.Array:
  """Wellons' "lowbias32": each input bit flips each output bit about half the time."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)


def dropout(seeds: jax.Array, x: jax.Array, rate: float) -> jax.Array:
  """Zeroes elements with probability `rate` and scales others by 1 / (1 - rate) (Srivastava 2014).

  Args:
    seeds: (B,) uint32, one per picture, so that masks are independent of other pictures.
    x: (B, ...), features.
    rate: probability of dropping an element, in [0, 1).

  Raises:
    ValueError: the rate is outside [0, 1).

  >>> dropped = dropout(jnp.arange(2, dtype=jnp.uint32), jnp.ones((2, 100)), 0.5)
  >>> sorted(set(dropped.flatten().tolist()))
  [0.0, 2.0]
  """
  if not 0 <= rate < 1:
    raise ValueError(f"a dropout rate lies in [0, 1), got {rate}")
  keep = hashed_bits(seeds, x.shape[1:]) >= jnp.uint32(round(rate * 2**32))
  return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype)).astype(x.dtype)
