"""Runs a compiled function over a set of pictures in batches of one size, on all devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from udp_jax.runtime import mesh as mesh_lib


def over_pictures(
  function: Callable[..., jax.Array], *leaves: Any, per_device_batch_size: int, mesh: Mesh
) -> np.ndarray:
  """Applies `function` to leaves (N, ...) batch by batch and returns the results (N, ...).

  The last batch is filled up with the first pictures, so that only one shape is compiled. A
  picture's result must not depend on the other pictures in its batch.

  Args:
    function: jitted, (*leaves (B, ...)) -> (B, ...). None leaves are passed as None.
    leaves: host arrays (N, ...), or None.
    per_device_batch_size: largest number of pictures per device at a time.
    mesh: devices over which a batch is split.
  """
  count = next(len(leaf) for leaf in leaves if leaf is not None)
  # Use the smallest number of batches, of even size, to reduce padding.
  share = -(-count // (mesh.size * -(-count // (per_device_batch_size * mesh.size))))
  size = share * mesh.size
  sharding = NamedSharding(mesh, PartitionSpec(mesh_lib.AXES))
  parts = []
  for start in range(0, count, size):
    rows = np.arange(start, start + size) % count
    batch = [None if leaf is None else jax.device_put(leaf[rows], sharding) for leaf in leaves]
    parts.append(np.asarray(function(*batch))[: count - start])
  return np.concatenate(parts)
