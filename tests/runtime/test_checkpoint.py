"""Checkpoints: what is read is what was written, and nothing half-written is ever seen."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from udp_jax.errors import OutputError
from udp_jax.objectives import training
from udp_jax.runtime import mesh as mesh_lib
from udp_jax.runtime.checkpoint import Checkpoints


def state(factor: float):
  """A training state, with None, scalars, integers and bfloat16 in it."""
  params = {"w": jnp.arange(6.0).reshape(2, 3) * factor, "b": jnp.ones(3, jnp.bfloat16) * factor}
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
  return training.init_state(params, tx)._replace(step=jnp.int32(factor))


def test_a_state_comes_back_as_it_was(tmp_path):
  checkpoints = Checkpoints(tmp_path / "a" / "b", every=10)
  assert checkpoints.latest() is None
  checkpoints.save(10, state(2.0))
  checkpoints.close()
  again = Checkpoints(tmp_path / "a" / "b", every=10)
  assert again.latest() == 10
  restored, expected = again.restore(state(0.0)), state(2.0)
  again.close()
  assert jax.tree.structure(restored) == jax.tree.structure(expected)
  assert isinstance(restored, training.TrainState) and restored.ema_params is None
  for got, want in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


def test_shardings_are_those_of_the_template(tmp_path):
  mesh = mesh_lib.make_mesh(jax.devices()[:1])
  template = mesh_lib.place_batches({"delta": np.zeros((2, 4, 3))}, mesh)
  checkpoints = Checkpoints(tmp_path, every=1)
  checkpoints.save(1, {"delta": jnp.ones((2, 4, 3))}, wait=True)
  restored = checkpoints.restore(template)["delta"]
  checkpoints.close()
  assert restored.sharding == template["delta"].sharding
  np.testing.assert_array_equal(restored, np.ones((2, 4, 3)))


def test_waiting_makes_it_visible_and_the_newest_are_kept(tmp_path):
  checkpoints = Checkpoints(tmp_path, every=1, keep=2)
  for position in (1, 2, 5):
    checkpoints.save(position, {"x": jnp.float32(position)}, wait=True)
    assert (tmp_path / str(position)).is_dir()
  checkpoints.save(5, {"x": jnp.float32(-1)}, wait=True)  # Nothing: it is there already.
  assert checkpoints.restore({"x": jnp.float32(0)})["x"] == 5
  checkpoints.close()
  assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["2", "5"]


def test_a_half_written_checkpoint_is_not_seen(tmp_path):
  checkpoints = Checkpoints(tmp_path, every=1)
  checkpoints.save(1, {"x": jnp.float32(1)}, wait=True)
  checkpoints.close()
  # What a kill leaves behind: the files are written under this name and renamed when done.
  (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
  (tmp_path / "2.orbax-checkpoint-tmp" / "half").write_text("")
  again = Checkpoints(tmp_path, every=1)
  assert again.latest() == 1
  again.save(2, {"x": jnp.float32(2)}, wait=True)
  assert again.restore({"x": jnp.float32(0)})["x"] == 2
  again.close()


@pytest.mark.parametrize(
  "before, after, due", [(0, 1, 0), (2, 3, 1), (3, 5, 0), (2, 9, 1), (5, 6, 1)]
)
def test_due(tmp_path, before, after, due):
  checkpoints = Checkpoints(tmp_path, every=3)
  assert checkpoints.due(before, after) == bool(due)
  checkpoints.close()


def test_a_folder_that_cannot_be_made(tmp_path):
  (tmp_path / "taken").write_text("a file")
  for folder in (tmp_path / "taken", tmp_path / "taken" / "checkpoints"):
    with pytest.raises(OutputError, match="cannot write .*taken.*: a file stands where a folder"):
      Checkpoints(folder, every=1)
  assert (tmp_path / "taken").read_text() == "a file"
