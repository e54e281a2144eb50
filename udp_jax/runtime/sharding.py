"""Places every part of a state on a ('data', 'fsdp') mesh.

Per-picture leaves are split over both axes along the batch. Weights and their optimiser state are
split over 'fsdp' along one axis of each array. A step gathers weights explicitly before it uses
them: otherwise the partitioner splits the computation as well and moves activations between
devices.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from udp_jax.runtime.mesh import AXES

# Splitting smaller arrays is not worth a collective.
_MIN_SPLIT = 2**11


def param_shardings(params: Any, mesh: Mesh) -> Any:
  """Returns shardings that split weights (or optimiser moments) over 'fsdp' along one axis.

  Each array is split along its last axis whose size 'fsdp' divides; small arrays, and arrays
  without such an axis, are replicated.

  Args:
    params: pytree of arrays or `jax.ShapeDtypeStruct`s.
    mesh: the devices, from `mesh.make_mesh`.
  """

  def sharding(leaf: Any) -> NamedSharding:
    size = mesh.shape["fsdp"]
    names: list[str | None] = [None] * leaf.ndim
    divisible = [i for i, n in enumerate(leaf.shape) if n % size == 0 and n >= size]
    if size > 1 and leaf.size >= _MIN_SPLIT and divisible:
      names[divisible[-1]] = "fsdp"
    return NamedSharding(mesh, PartitionSpec(*names))

  return jax.tree.map(sharding, params)


def replicated(tree: Any, mesh: Mesh) -> Any:
  """Returns shardings that put a full copy of `tree` on every device."""
  return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree)


def batch_shardings(data: Any, mesh: Mesh) -> Any:
  """Returns shardings that split leaves (num_batches, B, ...) along B."""
  return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec(None, AXES)), data)


def state_shardings(state: Any, leading: tuple[int, ...], mesh: Mesh) -> Any:
  """Returns the shardings of a protection's state.

  Args:
    state: the state from `Protection.init`, real or abstract.
    leading: (num_batches, B), the first axes of per-picture leaves.
    mesh: the devices, from `mesh.make_mesh`.
  """
  per_picture = NamedSharding(mesh, PartitionSpec(None, AXES))
  whole = NamedSharding(mesh, PartitionSpec())
  surrogate = getattr(state, "surrogate", None)
  rest = state if surrogate is None else state._replace(surrogate=None)

  def sharding(leaf: Any) -> NamedSharding:
    return per_picture if tuple(leaf.shape[:2]) == leading else whole

  shardings = jax.tree.map(sharding, rest)
  if surrogate is not None:
    shardings = shardings._replace(surrogate=param_shardings(surrogate, mesh))
  return shardings


def gather(params: Any, mesh: Mesh) -> Any:
  """Gathers full weights on every device; the backward pass returns gradients to the shards.

  This is the identity if 'fsdp' is 1. Call it inside `jit`: once for each differentiated use of
  the weights, or once for all uses if the weights are constant.
  """
  if mesh.shape["fsdp"] == 1:
    return params
  return jax.tree.map(
    lambda leaf, split: _gather(split, leaf), params, param_shardings(params, mesh)
  )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather(split: NamedSharding, leaf: jax.Array) -> jax.Array:
  whole = NamedSharding(split.mesh, PartitionSpec())
  return jax.lax.with_sharding_constraint(leaf, whole)


def _gather_forward(split: NamedSharding, leaf: jax.Array):
  return _gather(split, leaf), None


def _gather_backward(split: NamedSharding, _, cotangent: jax.Array):
  return (jax.lax.with_sharding_constraint(cotangent, split),)


_gather.defvjp(_gather_forward, _gather_backward)
