"""Splits a model's parameters over the devices."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from udp_jax.models.base import DiffusionModel, Params
from udp_jax.runtime import sharding


class Gathered(NamedTuple):
  """Held parameters with a full copy on every device."""

  params: Params


def split_weights(model: DiffusionModel, mesh: Mesh) -> DiffusionModel:
  """Wraps `model` for a mesh: every function first gathers parameters split over 'fsdp'.

  Held parameters (`DiffusionModel.hold`) are gathered once, when they are made. Inside the
  functions, the mesh is the current one (`jax.sharding.get_abstract_mesh`), for kernels that XLA
  cannot split over devices by itself.
  """
  if mesh.size == 1:
    return model
  split = mesh.shape["fsdp"] > 1

  def whole(params: Params) -> Params:
    if isinstance(params, Gathered):
      return params.params
    return sharding.gather(params, mesh) if split else params

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
    assert model.reconstruct is not None  # This function is otherwise unused.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return model.reconstruct(whole(params), images)

  def apply_learned(params: Params, *args: Any) -> tuple[jax.Array, jax.Array]:
    assert model.apply_learned is not None  # This function is otherwise unused.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return model.apply_learned(whole(params), *args)

  def posterior(params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    assert model.posterior is not None  # This function is otherwise unused.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return model.posterior(whole(params), images)

  def hold(params: Params) -> Params:
    held = model.hold(whole(params))
    return Gathered(held) if split else held

  return model._replace(
    apply=apply,
    encode=encode,
    decode=decode,
    hold=hold,
    reconstruct=reconstruct if model.reconstruct else None,
    apply_learned=apply_learned if model.apply_learned else None,
    posterior=posterior if model.posterior else None,
  )
