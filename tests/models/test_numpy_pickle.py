"""Pickled arrays: what NumPy itself reads, and nothing else."""

from __future__ import annotations

import hashlib
import os
import pickle

import numpy as np
import pytest

from udp_jax.errors import BadDataError, MissingDataError
from udp_jax.models import numpy_pickle

ARRAYS = {
  "float": np.arange(6, dtype=np.float32).reshape(2, 3),
  "big-endian": np.arange(3, dtype=">f8"),
  "Fortran": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
  "small": np.array([1, 255], np.uint8),
  "scalar": np.array(2.5),
}


def read(path, content: bytes):
  path.write_bytes(content)
  return numpy_pickle.read_arrays(path, sha256=hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_are_those_that_numpy_reads(tmp_path, protocol):
  tree = {"a": ARRAYS, "b": {"c": ARRAYS["float"][:, ::2]}, "epoch": 3, "list": [1]}
  found = read(tmp_path / "w.ckpt", pickle.dumps(tree, protocol))
  expected = {f"a.{name}": array for name, array in ARRAYS.items()} | {"b.c": tree["b"]["c"]}
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array)
    assert found[name].dtype == array.dtype.newbyteorder("=") and found[name].flags.writeable


class _Command:
  def __reduce__(self):
    return os.system, ("echo no",)


@pytest.mark.parametrize(
  ("value", "message"),
  [
    (_Command(), r"system, which is not allowed"),
    ({"a": np.array([{}], object)}, "type 'O8', not numbers"),
    ({"a": np.array(["b"])}, "type 'U1', not numbers"),
    ({"a": 1}, "no arrays in it"),
  ],
)
def test_nothing_else_is_read(tmp_path, value, message):
  with pytest.raises(BadDataError, match=message):
    read(tmp_path / "w.ckpt", pickle.dumps(value, 3))


def test_damage(tmp_path):
  content = pickle.dumps({"a": ARRAYS["float"]}, 3)
  path = tmp_path / "w.ckpt"
  with pytest.raises(BadDataError, match="not a readable pickle of arrays"):
    read(path, content[:-9])
  longer = content.replace(b"K\x02K\x03", b"K\x02K\x04")  # The shape (2, 4), of six numbers.
  assert longer != content
  with pytest.raises(BadDataError, match="cannot reshape"):
    read(path, longer)
  path.write_bytes(content)
  with pytest.raises(BadDataError, match="was not opened"):
    numpy_pickle.read_arrays(path, sha256="0" * 64)
  with pytest.raises(MissingDataError):
    numpy_pickle.read_arrays(tmp_path / "none", sha256="0" * 64)
