"""Meshes and shardings: one program from one CPU to a pod.

The mesh has two axes, ('data', 'fsdp'). Pictures, perturbations and per-picture state are split
over both axes along the batch; `udp_jax.runtime.sharding` places everything else. `jit` with
`NamedSharding` is the successor of `pmap`.

With several processes (`udp_jax.runtime.processes`) a mesh spans the devices of all of them. Each
process loads and fetches only the pictures of its own lanes (positions in the batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from udp_jax.errors import ConfigError

AXES = ("data", "fsdp")


def make_mesh(devices: Sequence[jax.Device] | None = None, *, fsdp: int = 1) -> Mesh:
  """Makes a ('data', 'fsdp') mesh over `devices` (default: all devices of all processes).

  Raises:
    ConfigError: `fsdp` does not divide the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  if fsdp < 1 or len(devices) % fsdp:
    raise ConfigError(f"fsdp={fsdp} does not divide {len(devices)} devices")
  # TPU numbering alternates between hosts; sort so that a host's devices and pictures are adjacent.
  devices = sorted(devices, key=lambda device: device.process_index)
  # Automatic axes: the partitioner decides inside `jit`, argument placement decides outside.
  return Mesh(np.asarray(devices).reshape(-1, fsdp), AXES)


def place(tree: Any, shardings: Any) -> Any:
  """Puts host arrays, which every process holds in full, on devices as `shardings` (pytree) say.

  Each process reads only the parts that its own devices hold.
  """

  def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
      return jax.device_put(leaf, sharding)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

  return jax.tree.map(put, tree, shardings)


def place_batches(data: Any, mesh: Mesh) -> Any:
  """Puts `Batch` leaves (num_batches, B, ...) on the devices, split along B.

  Raises:
    ConfigError: B is not a multiple of the number of devices.
  """
  sharding = NamedSharding(mesh, PartitionSpec(None, AXES))

  def placed(leaf: Any) -> jax.Array:
    if leaf.shape[1] % mesh.size:
      raise ConfigError(
        f"a global batch of {leaf.shape[1]} pictures does not divide over {mesh.size} devices; "
        "set --config.global_batch_size to a multiple (and have at least as many pictures)"
      )
    return place(leaf, sharding)

  return jax.tree.map(placed, data)


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Puts a full copy of a pytree, which every process holds, on every device."""
  whole = NamedSharding(mesh, PartitionSpec())
  return jax.tree.map(lambda leaf: place(leaf, whole), tree)


def own_rows(num_batches: int, lanes: int, count: int, mesh: Mesh) -> np.ndarray:
  """Returns sorted numbers of this process's pictures, among the first `count` of the batches."""
  owned = _own_lanes(lanes, mesh)
  rows = np.arange(num_batches)[:, None] * lanes + owned
  return rows.ravel()[rows.ravel() < count]


def fetch_own(leaf: jax.Array, count: int) -> np.ndarray:
  """Fetches this process's pictures of a leaf (num_batches, B, ...) split along B (`own_rows`)."""
  mesh = leaf.sharding.mesh  # type: ignore[attr-defined]
  shards = {shard.index[1].start or 0: shard for shard in leaf.addressable_shards}
  own = np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)], axis=1)
  rows = np.arange(leaf.shape[0])[:, None] * leaf.shape[1] + _own_lanes(leaf.shape[1], mesh)
  return own.reshape(-1, *own.shape[2:])[rows.ravel() < count]


def _own_lanes(lanes: int, mesh: Mesh) -> np.ndarray:
  share = lanes // mesh.size
  mine = [i for i, d in enumerate(mesh.devices.flat) if d.process_index == jax.process_index()]
  return np.concatenate([np.arange(i * share, (i + 1) * share) for i in mine])


def to_host(tree: Any) -> Any:
  """Fetches device arrays as full numpy arrays in every process; all processes must call it."""

  def fetch(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      if not leaf.is_fully_replicated:
        leaf = _gathered(leaf)
      return np.asarray(leaf.addressable_data(0))
    return np.asarray(leaf)

  return jax.tree.map(fetch, tree)


def _gathered(leaf: jax.Array) -> jax.Array:
  whole = NamedSharding(leaf.sharding.mesh, PartitionSpec())  # type: ignore[attr-defined]
  return jax.jit(lambda x: x, out_shardings=whole)(leaf)
