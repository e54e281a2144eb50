"""Where every part of a state lives on a ('data', 'fsdp') mesh.

What belongs to a picture is split over both axes along the batch; weights and what the optimiser
keeps for them are split over 'fsdp' along one axis of each array. Before a step uses weights, it
gathers them explicitly: left to itself, the partitioner splits the computation as well and moves
activations about.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from udp_jax.models.base import DiffusionModel, Params
from udp_jax.parallel import AXES
from udp_jax.training import Batch

# Smaller arrays are not worth a collective of their own.
_MIN_SPLIT = 2**11


def param_shardings(params: Any, mesh: Mesh) -> Any:
  """Shardings of weights (or of an optimiser's moments): split over 'fsdp' along one axis.

  Each array is split along its last axis that 'fsdp' divides; small arrays, and those with no such
  axis, are replicated.

  Args:
    params: pytree of arrays or `jax.ShapeDtypeStruct`s.
    mesh: of `parallel.make_mesh`.
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
  """Shardings that put all of `tree` on every device."""
  return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree)


def batch_shardings(data: Any, mesh: Mesh) -> Any:
  """Shardings of leaves (num_batches, B, ...), split along B."""
  return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec(None, AXES)), data)


def state_shardings(state: Any, data: Batch, mesh: Mesh) -> Any:
  """Shardings of a protection's state.

  Args:
    state: of `Protection.init`, real or abstract.
    data: leaves (num_batches, B, ...); tells which leaves of the state belong to pictures.
    mesh: of `parallel.make_mesh`.
  """
  per_picture = NamedSharding(mesh, PartitionSpec(None, AXES))
  whole = NamedSharding(mesh, PartitionSpec())
  surrogate = getattr(state, "surrogate", None)
  rest = state if surrogate is None else state._replace(surrogate=None)
  leading = tuple(data.ids.shape)

  def sharding(leaf: Any) -> NamedSharding:
    return per_picture if tuple(leaf.shape[:2]) == leading else whole

  shardings = jax.tree.map(sharding, rest)
  if surrogate is not None:
    shardings = shardings._replace(surrogate=param_shardings(surrogate, mesh))
  return shardings


def gather(params: Params, mesh: Mesh) -> Params:
  """Weights whole on every device; their gradient goes straight back to the shards.

  Identity where 'fsdp' is 1. Call it inside `jit`, once for each use of the weights that is
  differentiated, or once for all of them where they are held still.
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


class Gathered(NamedTuple):
  """Held parameters that are whole on every device."""

  params: Params


def split_weights(model: DiffusionModel, mesh: Mesh) -> DiffusionModel:
  """`model` on a mesh: every function gathers parameters that are split over 'fsdp' first.

  Held parameters (`DiffusionModel.hold`) are gathered when they are made, and not again. Inside,
  the mesh is the context's (`jax.sharding.get_abstract_mesh`), for kernels that XLA cannot split
  over devices by itself.
  """
  if mesh.size == 1:
    return model
  split = mesh.shape["fsdp"] > 1

  def whole(params: Params) -> Params:
    if isinstance(params, Gathered):
      return params.params
    return gather(params, mesh) if split else params

  def apply(params: Params, *args: Any, **options: Any) -> jax.Array:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return model.apply(whole(params), *args, **options)

  def encode(params: Params, images: jax.Array, keys: jax.Array | None) -> jax.Array:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return model.encode(whole(params), images, keys)

  def decode(params: Params, x0: jax.Array, clip: bool = True) -> jax.Array:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return model.decode(whole(params), x0, clip)

  def reconstruct(params: Params, images: jax.Array) -> jax.Array:
    assert model.reconstruct is not None  # Else this is not used.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return model.reconstruct(whole(params), images)

  def hold(params: Params) -> Params:
    held = model.hold(whole(params))
    return Gathered(held) if split else held

  return model._replace(
    apply=apply,
    encode=encode,
    decode=decode,
    hold=hold,
    reconstruct=reconstruct if model.reconstruct else None,
  )
