"""Safetensors files tensor by tensor: the library's own values, and little memory."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from udp_jax.errors import BadDataError
from udp_jax.models import tensor_files, weights

MIB = 1 << 20


def test_values_are_the_librarys(tmp_path: Path) -> None:
  rng = np.random.default_rng(0)
  tensors = {
    "half": rng.normal(size=(3, 4)).astype(np.float16),
    "brain": rng.normal(size=(2, 2, 5)).astype(jnp.bfloat16),
    "float": rng.normal(size=7).astype(np.float32),
    "ids": np.arange(5, dtype=np.int64),
    "scalar": np.float32(3.0),
    "none": np.zeros((0, 4), np.float32),
  }
  file = tmp_path / "x.safetensors"
  safetensors.numpy.save_file({k: np.asarray(v) for k, v in tensors.items()}, file, {"a": "b"})
  read, library = tensor_files.open_tensors(file), safetensors.numpy.load_file(file)
  assert set(read) == set(library) and len(read) == 6 and read.metadata == {"a": "b"}
  for name, expected in library.items():
    assert read[name].dtype == expected.dtype and read.shape(name) == expected.shape
    np.testing.assert_array_equal(read[name], expected)


def test_damaged_files(tmp_path: Path) -> None:
  file = tmp_path / "x.safetensors"
  safetensors.numpy.save_file({"a": np.ones(1000, np.float32)}, file)
  whole = file.read_bytes()
  for content in (b"", whole[:4], whole[:40], whole[:-4], b"\xff" * 100):
    file.write_bytes(content)
    with pytest.raises(BadDataError, match="not a readable safetensors"):
      tensor_files.open_tensors(file)
  file.write_bytes(whole)
  opened = tensor_files.open_tensors(file)
  file.write_bytes(whole[:-4])
  with pytest.raises(BadDataError, match="ends within a"):
    opened["a"]


def _anonymous() -> int:
  text = Path("/proc/self/status").read_text()
  fields = [line for line in text.splitlines() if line.startswith("RssAnon")]
  return int(fields[0].split()[1]) << 10


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weights_exist_once_while_loading(dtype, tmp_path: Path) -> None:
  if not Path("/proc/self/status").exists():
    pytest.skip("memory is read from /proc")
  shape, count = (1024, 1024, 3, 3), 6  # 18 MiB each in float16, 108 in all.
  folder = tmp_path / "model"
  folder.mkdir()
  (folder / "config.json").write_text("{}")
  rng = np.random.default_rng(0)
  names = [f"down_blocks_{i}" for i in range(count)]
  tensors = {}
  for name in names:
    values = rng.normal(size=shape).astype(np.float16)
    tensors[f"{weights.torch_name((name, 'kernel'))}"] = values
  safetensors.numpy.save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
  del tensors, values
  leaf = jax.ShapeDtypeStruct((3, 3, 1024, 1024), dtype)
  template = {name: {"kernel": leaf} for name in names}
  one = 9 * MIB * jnp.dtype(dtype).itemsize
  jax.block_until_ready(jax.device_put(np.ones(9 * MIB, dtype)))
  before, most, done = _anonymous(), [0], threading.Event()

  def watch() -> None:
    while not done.is_set():
      most[0] = max(most[0], _anonymous())
      time.sleep(0.001)

  watcher = threading.Thread(target=watch)
  watcher.start()
  opened = weights.load_pretrained(folder)[1]
  params = weights.from_torch_names(opened, template, put=jax.device_put)
  jax.block_until_ready(params)
  done.set()
  watcher.join()
  held = count * one
  # The parameters, and at most one tensor as it is in the file and twice as it is used.
  assert most[0] - before < held + 18 * MIB + 2 * one + 16 * MIB
  assert jax.tree.leaves(params)[0].dtype == dtype
