"""Where parts of a state live, told by their shapes; nothing is placed here."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from udp_jax.runtime import mesh as mesh_lib
from udp_jax.runtime import sharding

MESH = jax.sharding.AbstractMesh((2, 4), mesh_lib.AXES)
BOTH = PartitionSpec(None, mesh_lib.AXES)


def _spec(shape: tuple[int, ...], mesh=MESH) -> tuple:
  found = sharding.param_shardings(jax.ShapeDtypeStruct(shape, jnp.float32), mesh)
  return tuple(found.spec)


@pytest.mark.parametrize(
  ("shape", "spec"),
  [
    ((3, 3, 64, 128), (None, None, None, "fsdp")),
    ((3, 3, 64, 6), (None, None, "fsdp", None)),
    ((2048,), ("fsdp",)),
    # Small, or with no axis that four divides.
    ((2044,), (None,)),
    ((45, 63), (None, None)),
  ],
)
def test_weights_are_split_along_their_last_axis_that_divides(shape: tuple, spec: tuple) -> None:
  assert _spec(shape) == spec
  assert set(_spec(shape, jax.sharding.AbstractMesh((8, 1), mesh_lib.AXES))) == {None}


class State(NamedTuple):
  round: Any
  delta: Any
  surrogate: Any = None


def test_a_state_is_split_by_what_its_leaves_belong_to() -> None:
  weights = {"kernel": jnp.zeros((64, 64)), "bias": jnp.zeros(64)}
  state = State(jnp.int32(0), jnp.zeros((3, 8, 4, 4, 3)), weights)
  found = sharding.state_shardings(state, (3, 8), MESH)
  specs = jax.tree.map(lambda where: where.spec, found)
  assert specs.round == PartitionSpec() and specs.delta == BOTH
  assert specs.surrogate["kernel"] == PartitionSpec(None, "fsdp")
  assert tuple(specs.surrogate["bias"]) == (None,)
  # Without a surrogate there is nothing but pictures and numbers.
  plain = sharding.state_shardings(state._replace(surrogate=None), (3, 8), MESH)
  assert plain.delta.spec == BOTH and plain.surrogate is None


def test_data_and_numbers() -> None:
  tree = {"a": np.zeros((3, 8, 2)), "b": np.zeros((3, 8))}
  assert {where.spec for where in sharding.batch_shardings(tree, MESH).values()} == {BOTH}
  assert {where.spec for where in sharding.replicated(tree, MESH).values()} == {PartitionSpec()}


def test_gathering_changes_no_value_and_no_gradient() -> None:
  mesh = mesh_lib.make_mesh(jax.devices()[:1])
  params = {"kernel": jnp.arange(6.0).reshape(2, 3)}
  assert sharding.gather(params, mesh) is params
  split = sharding.param_shardings(params, mesh)["kernel"]

  def loss(leaf):
    return jnp.sum(jnp.square(sharding._gather(split, leaf)))

  value, gradient = jax.jit(jax.value_and_grad(loss))(params["kernel"])
  assert value == 55.0
  np.testing.assert_array_equal(gradient, 2 * params["kernel"])
