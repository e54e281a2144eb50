"""Named streams of randomness: one root key, and draws that depend on nothing but names and counts.

A picture's draws come from a key folded from (stream, step, id of the picture). They are the
same whatever the batch around it, the order of the batches and the number of devices, so that an
interrupted run goes on as if nothing had happened.
"""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def stream(key: jax.Array, name: str) -> jax.Array:
  """The key of a named stream, independent of every other name's."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def example_keys(key: jax.Array, step: ArrayLike, ids: ArrayLike) -> jax.Array:
  """Keys (B,), one for each picture of `ids` (B,) at `step` ()."""
  at_step = jax.random.fold_in(key, step)
  return jax.vmap(lambda i: jax.random.fold_in(at_step, i))(jnp.asarray(ids))


def split_each(keys: jax.Array, num: int) -> tuple[jax.Array, ...]:
  """Splits every key of (B,) into `num`: that many arrays (B,)."""
  split = jax.vmap(lambda key: jax.random.split(key, num))(keys)
  return tuple(split[:, i] for i in range(num))


def normal_each(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Standard normal draws (B, *shape), one key (B,) a picture."""
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
