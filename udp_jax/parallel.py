"""Meshes and shardings: one program from one CPU to a pod.

The mesh has two axes, ('data', 'fsdp'). Pictures, perturbations and per-picture state are split
over both along the batch axis; parameters are replicated here (splitting them over 'fsdp' is a
performance matter of large models). `jit` with `NamedSharding` is the successor of `pmap`.
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
  """A ('data', 'fsdp') mesh over `devices` (default: all).

  Raises:
    ConfigError: `fsdp` does not divide the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  if len(devices) % fsdp:
    raise ConfigError(f"fsdp={fsdp} does not divide {len(devices)} devices")
  # Automatic axes: the partitioner decides inside, the placement of the arguments decides outside.
  return Mesh(np.asarray(devices).reshape(-1, fsdp), AXES)


def place_batches(data: Any, mesh: Mesh) -> Any:
  """Puts `Batch` leaves (num_batches, B, ...) on the devices, split along B.

  Raises:
    ConfigError: B is not a multiple of the number of devices.
  """

  def place(leaf: Any) -> jax.Array:
    if leaf.shape[1] % mesh.size:
      raise ConfigError(
        f"a global batch of {leaf.shape[1]} pictures does not divide over {mesh.size} devices; "
        "set --config.global_batch_size to a multiple (and have at least as many pictures)"
      )
    return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(None, AXES)))

  return jax.tree.map(place, data)


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Puts a pytree on every device, whole."""
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
