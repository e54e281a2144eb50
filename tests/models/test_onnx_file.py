"""ONNX files, written here by hand: their tensors, and damage."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from udp_jax.errors import BadDataError
from udp_jax.models import onnx_file

KINDS = {"f4": 1, "u1": 2, "i1": 3, "i4": 6, "i8": 7, "f2": 10, "f8": 11}


def varint(value: int) -> bytes:
  more = b""
  while value > 127:
    more, value = more + bytes([value & 127 | 128]), value >> 7
  return more + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
  if isinstance(value, int):
    return varint(number << 3) + varint(value)
  return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name: str, array: np.ndarray, *, packed: bool = False, floats: bool = False) -> bytes:
  dims = [varint(n) for n in array.shape]
  made = field(1, b"".join(dims)) if packed else b"".join(field(1, n) for n in array.shape)
  made += field(2, KINDS[array.dtype.str[1:]]) + field(8, name.encode())
  return made + field(4 if floats else 9, array.tobytes())


def model(*tensors: bytes) -> bytes:
  """With a version, a 4-byte field and an operation, which are left out."""
  graph = field(1, field(4, b"Conv")) + b"".join(field(5, one) for one in tensors)
  return field(1, 6) + varint(20 << 3 | 5) + b"\0\0\0\0" + field(7, graph)


def read(path, content: bytes):
  path.write_bytes(content)
  return onnx_file.read_tensors(path, sha256=hashlib.sha256(content).hexdigest())


def test_tensors(tmp_path):
  arrays = {k: np.arange(300).reshape(3, 100).astype(k) for k in KINDS}
  arrays["scalar"] = np.array(7, np.float32)
  encoded = [tensor(n, a, packed=n == "i1", floats=n == "f4") for n, a in arrays.items()]
  found = read(tmp_path / "m.onnx", model(*encoded))
  assert found.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[name], array)
    assert found[name].dtype == array.dtype


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (model(field(2, 8) + field(8, b"words")), "'words': data type 8 is not supported"),
    (model(field(8, b"far") + field(13, b"")), "'far': field 13 is not supported"),
    (model(tensor("a", np.zeros(3, np.float32))[:-1] + b""), "ONNX file"),
    (model()[:-3], "it ends too early"),
    (varint(7 << 3 | 3), "wire type 3"),
    (b"\xff" * 12, "over 64 bits"),
    (b"\x80", "not a readable ONNX file"),
  ],
)
def test_damage(tmp_path, content, message):
  with pytest.raises(BadDataError, match=message):
    read(tmp_path / "m.onnx", content)


def test_the_digest_comes_first(tmp_path):
  (tmp_path / "m.onnx").write_bytes(b"\x80")
  with pytest.raises(BadDataError, match="was not opened"):
    onnx_file.read_tensors(tmp_path / "m.onnx", sha256="0" * 64)
