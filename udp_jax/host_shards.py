"""Data in host memory that the devices cannot hold at once: dealt out, sent through, put together.

The part of `streaming` that knows nothing of protections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from udp_jax.errors import ConfigError
from udp_jax.training import Batch


def divide(tree: Any, num_shards: int) -> tuple[Any, ...]:
  """Deals the batches of a data set out to shards of one size, one after the other.

  Args:
    tree: pytree of numpy, leaves (num_batches, ...).
    num_shards: at most num_batches.

  Returns:
    The shards: the same tree, leaves (ceil(num_batches / num_shards), ...). Views, but for those
    that come out short and are padded with their own first row.
  """

  def dealt(leaf: np.ndarray, i: int) -> np.ndarray:
    rows = leaf[i::num_shards]
    missing = -(-len(leaf) // num_shards) - len(rows)
    return np.concatenate([rows, rows[:missing]]) if missing else rows

  return tuple(jax.tree.map(lambda leaf, i=i: dealt(leaf, i), tree) for i in range(num_shards))


def gather(parts: Sequence[np.ndarray], num_batches: int) -> np.ndarray:
  """Undoes `divide` for one leaf.

  Args:
    parts: the leaf of every shard.
    num_batches: of the data set.

  Returns:
    (num_batches, ...), without the padding.
  """
  leaf = np.empty((num_batches, *parts[0].shape[1:]), parts[0].dtype)
  for i, part in enumerate(parts):
    rows = leaf[i :: len(parts)]
    rows[:] = part[: len(rows)]
  return leaf


def select(tree: Any, of_shard: Any, *, wanted: bool = True) -> Any:
  """One of the two halves of a state.

  Args:
    tree: pytree.
    of_shard: the same of bools: True for what belongs to pictures, False for what all share.
    wanted: which of them.

  Returns:
    `tree` with None in place of the other half.
  """
  return jax.tree.map(lambda leaf, flag: leaf if flag == wanted else None, tree, of_shard)


def merge(one: Any, other: Any) -> Any:
  """Undoes `select`: of two trees of one shape, at every leaf the one that is not None."""
  return jax.tree.map(
    lambda a, b: b if a is None else a, one, other, is_leaf=lambda leaf: leaf is None
  )


def pipelined(
  items: Sequence[Any],
  put: Callable[[Any], Any],
  run: Callable[[Any, Any], tuple[Any, Any]],
  carry: Any,
) -> tuple[Any, list[Any]]:
  """Like `lax.scan` over items in host memory, of which the devices never hold more than two.

  While the device runs an item, the host fetches the output before it and only then puts the next.

  Args:
    items: at least one.
    put: item -> the item on the devices. Like `run` it returns at once; its work is queued.
    run: (carry, item on the devices) -> (carry, pytree of output).
    carry: of the first item.

  Returns:
    The last carry, and the outputs as numpy.
  """
  # `np.array`: what `np.asarray` gives may be a view that keeps the device's buffer alive.
  outputs, running = [], None
  placed = put(items[0])
  for i in range(len(items)):
    carry, output = run(carry, placed)
    placed = None  # The device lets go of it when it has run.
    for leaf in jax.tree.leaves(output):
      leaf.copy_to_host_async()
    if running is not None:
      outputs.append(jax.tree.map(np.array, running))
    running = output
    if i + 1 < len(items):
      placed = put(items[i + 1])
  return carry, [*outputs, jax.tree.map(np.array, running)]


def on_host(function: Callable, key: jax.Array, batches: Batch) -> Any:
  """`function(key, batches, None)` by JAX's CPU backend, as numpy.

  Raises:
    ConfigError: the process runs without that backend.
  """
  try:
    cpu = jax.local_devices(backend="cpu")[0]
  except RuntimeError as error:
    raise ConfigError(
      "this control is made in host memory, which needs JAX's CPU backend: add it to "
      "JAX_PLATFORMS, as in JAX_PLATFORMS=cuda,cpu"
    ) from error
  with jax.default_device(cpu):
    return jax.tree.map(np.asarray, function(jax.device_put(key, cpu), batches, None))
