"""The compiled round: its state goes round in place, and stays where it was put."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax import protections
from udp_jax.data import batches
from udp_jax.protections.base import WHOLE
from udp_jax.runtime import mesh
from udp_jax.stages import compiled_round
from udp_jax.stages.compiled_round import CompiledRound

KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def made(gaussian_model, pictures):
  """(round, data, parameters) of AdvDM on three batches of eight."""
  options = {"radius_255": 16.0, "step_size_255": 4.0, "start": "zero"}
  protection = protections.build("advdm", gaussian_model, options)
  data = batches.make_batches(pictures, 8)
  params = gaussian_model.init(jax.random.key(0))
  return CompiledRound.of(protection, KEY, data, params, mesh.make_mesh()), data, params


def test_two_rounds_take_the_steps_of_the_method(made) -> None:
  compiled, data, params = made
  state = compiled.init(KEY, data, params)
  assert jax.tree.map(jnp.shape, state) == jax.tree.map(lambda leaf: leaf.shape, compiled.abstract)
  program = compiled.lower(KEY, compiled.placed, data, params).compile()
  first, _ = program(KEY, state, data, params, jnp.int32(WHOLE))
  # Donated: the delta of before is gone, its memory holds the new one.
  assert state.delta.is_deleted()
  largest = float(jnp.abs(first.delta).max())
  assert 0 < largest <= 4 / 255 + 1e-6
  second, _ = program(KEY, first, data, params, jnp.int32(WHOLE))
  assert largest < float(jnp.abs(second.delta).max()) <= 8 / 255 + 1e-6
  assert second.delta.sharding.is_equivalent_to(compiled.shardings.delta, second.delta.ndim)


def test_another_update_may_take_its_place(made) -> None:
  compiled, data, params = made

  def nothing(key, state, data, params, phase):
    return state._replace(delta=state.delta + phase), phase

  other = CompiledRound.of(compiled.protection, KEY, data, params, mesh.make_mesh(), update=nothing)
  state = other.init(KEY, data, params)
  before = np.asarray(state.delta)
  after, phase = other.jitted(KEY, state, data, params, jnp.int32(3))
  assert phase == 3
  np.testing.assert_allclose(after.delta, before + 3, rtol=1e-6)


def test_abstract_leaves_know_their_place(made) -> None:
  compiled, *_ = made
  for leaf, where in zip(
    jax.tree.leaves(compiled.placed), jax.tree.leaves(compiled.shardings), strict=True
  ):
    assert isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding == where


def test_what_runs_once_gives_what_it_would_anyway() -> None:
  draw = compiled_round.run_once(lambda key: jax.random.uniform(key, (3,)))
  np.testing.assert_array_equal(draw(KEY), jax.random.uniform(KEY, (3,)))


def test_numbers_are_fetched_as_floats() -> None:
  found = compiled_round.fetched({"a": jnp.float32(0.5), "b": jnp.int32(3)})
  assert found == {"a": 0.5, "b": 3.0} and {type(value) for value in found.values()} == {float}
