"""Named random streams: one root key, and draws that depend only on names and counts.

A picture's draws come from a key folded from (stream, step, id of the picture). They do not depend
on the rest of the batch, the order of the batches or the number of devices, so a resumed run draws
exactly what an uninterrupted one would.
"""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def stream(key: jax.Array, name: str) -> jax.Array:
  """Returns the key of a named stream, independent of the streams with other names.

  >>> root = jax.random.key(0)
  >>> bool(stream(root, "start") == stream(root, "noise"))
  False
  """
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def example_keys(key: jax.Array, step: ArrayLike, ids: ArrayLike) -> jax.Array:
  """Returns keys (B,), one for each picture in `ids` (B,), at `step` ().

  >>> keys = example_keys(jax.random.key(0), 3, [7, 8])
  >>> bool(keys[1] == example_keys(jax.random.key(0), 3, [8])[0])
  True
  """
  at_step = jax.random.fold_in(key, step)
  return jax.vmap(lambda i: jax.random.fold_in(at_step, i))(jnp.asarray(ids))


def split_each(keys: jax.Array, num: int) -> tuple[jax.Array, ...]:
  """Splits each key of (B,) into `num` keys; returns `num` arrays (B,).

  >>> noise, mask = split_each(example_keys(jax.random.key(0), 0, [7, 8]), 2)
  >>> noise.shape, mask.shape
  ((2,), (2,))
  """
  split = jax.vmap(lambda key: jax.random.split(key, num))(keys)
  return tuple(split[:, i] for i in range(num))


def normal_each(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Draws standard normal noise (B, *shape), with one key (B,) per picture.

  >>> normal_each(example_keys(jax.random.key(0), 0, [7, 8]), (8, 8, 3)).shape
  (2, 8, 8, 3)
  """
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
