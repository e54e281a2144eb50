"""Batches: arrays of pictures and their per-picture data, with the same leading axes.

A data set's leaves have two leading axes, (num_batches, global_batch, ...). A training step takes
one picture from every lane (position in the batch), so shuffling moves nothing across devices.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.errors import ConfigError


class Batch(NamedTuple):
  """Pictures and their per-picture data; every leaf has the same leading axes.

  Attributes:
    images: (..., H, W, C) uint8, the clean 8-bit pictures.
    ids: (...,) int32, a picture's number in the data set, which seeds its randomness.
    weight: (...,) float32, 1 for pictures and 0 for the padding of the last batch.
    cond: conditioning of the model, or None.
    reference: (..., H, W, C) uint8, the same pictures protected by another method, for the controls
      that imitate it; otherwise None.
    mask: (..., H, W, 1) uint8, 1 where a perturbation is allowed, 0 elsewhere; None allows all.
    limit: (..., H, W, 1) uint8, the largest change of a pixel in 8-bit levels, where it is less
      than the method's radius; None if only the radius applies.
    grey: (...,) uint8, 1 for a grey picture, whose perturbation is equal in all channels, 0 for
      others; None if no picture is grey.
  """

  images: jax.Array | np.ndarray
  ids: jax.Array | np.ndarray
  weight: jax.Array | np.ndarray
  cond: Any = None
  reference: jax.Array | np.ndarray | None = None
  mask: jax.Array | np.ndarray | None = None
  limit: jax.Array | np.ndarray | None = None
  grey: jax.Array | np.ndarray | None = None


def make_batches(images: np.ndarray, global_batch_size: int, **extra: np.ndarray | None) -> Batch:
  """Arranges pictures (N, H, W, C) as (ceil(N / B), B, H, W, C), padded with weight-0 repeats.

  A batch larger than the data set shrinks to it. `extra` holds further `Batch` leaves (N, ...).

  >>> data = make_batches(np.zeros((5, 8, 8, 3), np.uint8), 2)
  >>> data.images.shape, data.weight.tolist()
  ((3, 2, 8, 8, 3), [[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
  """
  count = len(images)
  size = min(global_batch_size, count)
  num_batches = -(-count // size)
  padded = np.arange(num_batches * size)
  order = padded % count

  def arrange(leaf: np.ndarray | None) -> np.ndarray | None:
    return None if leaf is None else leaf[order].reshape(num_batches, size, *leaf.shape[1:])

  arranged: dict[str, Any] = {name: arrange(leaf) for name, leaf in extra.items()}
  return Batch(
    images=images[order].reshape(num_batches, size, *images.shape[1:]),
    ids=padded.astype(np.int32).reshape(num_batches, size),
    weight=(padded < count).astype(np.float32).reshape(num_batches, size),
    **arranged,
  )


def unbatch(leaf: jax.Array | np.ndarray, count: int) -> np.ndarray:
  """Undoes `make_batches` for one leaf: (num_batches, B, ...) -> (count, ...).

  >>> data = make_batches(np.zeros((5, 8, 8, 3), np.uint8), 2)
  >>> unbatch(data.images, 5).shape
  (5, 8, 8, 3)
  """
  leaf = np.asarray(leaf)
  return leaf.reshape(-1, *leaf.shape[2:])[:count]


def take_rows(key: jax.Array, step: jax.Array, num_batches: int, lanes: int) -> jax.Array:
  """Picks one picture per lane for a training step; an epoch uses every picture once.

  Args:
    key: key of the shuffling stream.
    step: (), step number, counted across epochs.
    num_batches: number of pictures in each lane.
    lanes: global batch size.

  Returns:
    (lanes,), rows along the leading axis.

  >>> rows = take_rows(jax.random.key(0), jnp.int32(0), 3, 2)
  >>> rows.shape, bool((rows < 3).all())
  ((2,), True)
  """
  epoch_key = jax.random.fold_in(key, step // num_batches)

  def row(lane: jax.Array) -> jax.Array:
    permutation = jax.random.permutation(jax.random.fold_in(epoch_key, lane), num_batches)
    return permutation[step % num_batches]

  return jax.vmap(row)(jnp.arange(lanes))


def take(data: Any, rows: jax.Array) -> Any:
  """Takes row `rows[i]` of lane i: leaves (num_batches, lanes, ...) -> (lanes, ...).

  >>> take(jnp.array([[1, 2], [3, 4]]), jnp.array([1, 0])).tolist()
  [3, 2]
  """
  return jax.tree.map(lambda leaf: jax.vmap(lambda x, r: x[r], (1, 0))(leaf, rows), data)


def put(leaf: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
  """Inverse of `take` for one leaf: sets row `rows[i]` of lane i to values[i].

  >>> put(jnp.zeros((2, 2)), jnp.array([1, 0]), jnp.array([5.0, 6.0])).tolist()
  [[0.0, 6.0], [5.0, 0.0]]
  """
  return jax.vmap(lambda x, r, v: x.at[r].set(v), (1, 0, 0), 1)(leaf, rows, values)


def batches_with_prior(
  images: np.ndarray,
  cond: np.ndarray,
  prior_images: np.ndarray,
  prior_cond: np.ndarray,
  *,
  prior_weight: float,
  global_batch_size: int,
) -> Batch:
  """Makes batches whose first half shows the subject and whose second half shows its class.

  The smaller set repeats until the larger one has been seen, as in diffusers' script.

  Args:
    images: uint8 (N, H, W, 3), pictures of the subject.
    cond: (N, ...), prompts of `images`.
    prior_images: uint8 (M, H, W, 3), pictures of the subject's class.
    prior_cond: (M, ...), prompts of `prior_images`.
    prior_weight: weight of a class picture; a subject picture has weight 1.
    global_batch_size: number of pictures in a batch, both halves together; even.

  Raises:
    ConfigError: the batch size is odd, a set is empty, or shapes differ between the sets.

  >>> one, many = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((6, 8, 8, 3), np.uint8)
  >>> cond = np.zeros((6, 4), np.int32)
  >>> data = batches_with_prior(one, cond[:2], many, cond, prior_weight=0.5, global_batch_size=4)
  >>> data.images.shape
  (3, 4, 8, 8, 3)
  """
  if global_batch_size % 2 or global_batch_size < 2:
    raise ConfigError(
      f"half of a batch are class pictures: a global batch of {global_batch_size} has no halves"
    )
  if not len(images) or not len(prior_images):
    raise ConfigError("DreamBooth needs pictures of the subject and of its class")
  if images.shape[1:] != prior_images.shape[1:] or cond.shape[1:] != prior_cond.shape[1:]:
    raise ConfigError(
      f"pictures {images.shape[1:]} with prompts {cond.shape[1:]} and class pictures "
      f"{prior_images.shape[1:]} with prompts {prior_cond.shape[1:]} do not go together"
    )
  half = global_batch_size // 2
  rows = -(-max(len(images), len(prior_images)) // half)
  places = np.arange(rows * half).reshape(rows, half)

  def arranged(own: np.ndarray, prior: np.ndarray) -> np.ndarray:
    return np.concatenate([own[places % len(own)], prior[places % len(prior)]], axis=1)

  weights = np.ones(half), np.full(half, prior_weight)
  return Batch(
    images=arranged(images, prior_images),
    # Number the place, not the picture: a picture may occur several times in a batch.
    ids=np.concatenate([places, rows * half + places], axis=1).astype(np.int32),
    weight=np.broadcast_to(np.concatenate(weights), (rows, 2 * half)).astype(np.float32),
    cond=arranged(cond, prior_cond),
  )
