"""Splits data in host memory into shards that the devices can hold, runs them and merges results.

`streaming` uses these functions; nothing here depends on a protection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from udp_jax.errors import ConfigError


def divide(tree: Any, num_shards: int) -> tuple[Any, ...]:
  """Deals the batches of a data set to shards of equal size, round-robin.

  Args:
    tree: pytree of numpy arrays, leaves (num_batches, ...).
    num_shards: number of shards, at most num_batches.

  Returns:
    One tree per shard, leaves (ceil(num_batches / num_shards), ...). These are views, except for
    shards that come out short, which are padded with their own first batch.
  """

  def dealt(leaf: np.ndarray, i: int) -> np.ndarray:
    rows = leaf[i::num_shards]
    missing = -(-len(leaf) // num_shards) - len(rows)
    return np.concatenate([rows, rows[:missing]]) if missing else rows

  return tuple(jax.tree.map(lambda leaf, i=i: dealt(leaf, i), tree) for i in range(num_shards))


def gather(parts: Sequence[np.ndarray], num_batches: int) -> np.ndarray:
  """Undoes `divide` for one leaf.

  Args:
    parts: the leaf's arrays, one per shard.
    num_batches: number of batches in the data set.

  Returns:
    Array (num_batches, ...), without the padding.
  """
  leaf = np.empty((num_batches, *parts[0].shape[1:]), parts[0].dtype)
  for i, part in enumerate(parts):
    rows = leaf[i :: len(parts)]
    rows[:] = part[: len(rows)]
  return leaf


def select(tree: Any, of_shard: Any, *, wanted: bool = True) -> Any:
  """Selects the per-picture half or the shared half of a state.

  Args:
    tree: pytree.
    of_shard: pytree of bools with the same structure: True for per-picture leaves, False for
      shared ones.
    wanted: value of `of_shard` at the leaves to keep.

  Returns:
    `tree` with None in place of the other leaves.
  """
  return jax.tree.map(lambda leaf, flag: leaf if flag == wanted else None, tree, of_shard)


def merge(one: Any, other: Any) -> Any:
  """Undoes `select`: takes, at each leaf of two matching trees, the one that is not None."""
  return jax.tree.map(
    lambda a, b: b if a is None else a, one, other, is_leaf=lambda leaf: leaf is None
  )


def pipelined(
  items: Sequence[Any],
  put: Callable[[Any], Any],
  run: Callable[[Any, Any], tuple[Any, Any]],
  carry: Any,
) -> tuple[Any, list[Any]]:
  """Scans over items in host memory like `lax.scan`, with at most two items on the devices.

  While the device runs an item, the host fetches the previous output, then puts the next item.

  Args:
    items: what to work on; at least one item.
    put: item -> the item on the devices. Like `run`, it queues its work and returns at once.
    run: (carry, item on the devices) -> (carry, output pytree).
    carry: initial carry.

  Returns:
    The final carry, and the list of outputs as numpy arrays.
  """
  # Use `np.array`: `np.asarray` may return a view that keeps the device buffer alive.
  outputs, running = [], None
  placed = put(items[0])
  for i in range(len(items)):
    carry, output = run(carry, placed)
    placed = None  # So that the device frees the item once it has run.
    for leaf in jax.tree.leaves(output):
      leaf.copy_to_host_async()
    if running is not None:
      outputs.append(jax.tree.map(np.array, running))
    running = output
    if i + 1 < len(items):
      placed = put(items[i + 1])
  return carry, [*outputs, jax.tree.map(np.array, running)]


def on_host(function: Callable, key: jax.Array, batches: Any) -> Any:
  """Runs `function(key, batches, None)` on JAX's CPU backend and returns numpy arrays.

  Raises:
    ConfigError: the process has no CPU backend.
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
