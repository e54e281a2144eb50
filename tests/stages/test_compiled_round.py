"""The compiled round: its state goes round in place, and stays where it was put."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
  program = compiled.compile(KEY, compiled.placed, data, params)
  assert program.arguments == () and "HloModule jit_update" in program.as_text()
  assert program.memory_analysis().temp_size_in_bytes > 0
  first, _ = program(KEY, state, data, params, jnp.int32(WHOLE))
  # Donated: the delta of before is gone, its memory holds the new one.
  assert state.delta.is_deleted()
  largest = float(jnp.abs(first.delta).max())
  assert 0 < largest <= 4 / 255 + 1e-6
  second, _ = program(KEY, first, data, params, jnp.int32(WHOLE))
  assert largest < float(jnp.abs(second.delta).max()) <= 8 / 255 + 1e-6
  assert second.delta.sharding.is_equivalent_to(compiled.shardings.delta, second.delta.ndim)


def test_arrays_of_the_method_are_arguments_of_the_program(gaussian_model, pictures) -> None:
  """UDP's program, given EUDP's arrays, does what EUDP's does."""
  data = batches.make_batches(pictures, 10)
  options = {"radius_255": 16.0, "step_size_255": 4.0, "train_steps": 2, "perturb_steps": 1}
  programs, states = [], []
  for name in ("udp", "eudp"):
    protection = protections.build(name, gaussian_model, options)
    compiled = CompiledRound.of(protection, KEY, data, None, mesh.make_mesh())
    programs.append(compiled.compile(KEY, compiled.placed, data, None))
    states.append([compiled.init(KEY, data, None) for _ in range(2)])
  udp, eudp = programs
  assert all(leaf.sharding.is_fully_replicated for leaf in udp.arguments)
  deltas = [
    np.asarray(program(KEY, state, data, None, jnp.int32(WHOLE))[0].delta)
    for program, state in (
      (udp, states[0][0]),
      (eudp, states[1][0]),
      (udp._replace(arguments=eudp.arguments), states[0][1]),
    )
  ]
  assert np.any(deltas[0] != deltas[1])
  np.testing.assert_array_equal(deltas[1], deltas[2])


_ROWS = """
import jax, numpy as np
from udp_jax import protections
from udp_jax.data import batches
from udp_jax.models import toy
from udp_jax.runtime import mesh
from udp_jax.stages.compiled_round import CompiledRound
key, model = jax.random.key(0), toy.on_pixels()
data = batches.make_batches(np.full((4, 8, 8, 3), 128, np.uint8), 2)
options = {"radius_255": 8, "step_size_255": 2, "train_steps": 1, "perturb_steps": 1}
for name in ("udp", "eudp"):
  protection = protections.build(name, model, options)
  made = CompiledRound.of(protection, key, data, None, mesh.make_mesh())
  made.compile(key, made.placed, data, None)
"""


def test_two_rows_leave_one_program_in_the_cache(
  tmp_path: Path, process_environment: dict[str, str]
) -> None:
  environment = process_environment | {
    "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
    "PYTHONPATH": str(Path(compiled_round.__file__).parents[2]),
  }
  subprocess.run([sys.executable, "-c", _ROWS], env=environment, check=True)
  assert len(list(tmp_path.glob("jit_update-*-cache"))) == 1


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
