"""Reads the tensors of an ONNX file: the few fields of its protocol buffers that hold them.

A message is a run of fields, each a key (number and wire type) and a value: 0 is a variable-length
integer, 1 and 5 are 8 and 4 bytes, 2 is a length and that many bytes
(https://protobuf.dev/programming-guides/encoding). Field numbers are those of onnx.proto: a model's
graph is field 7, a graph's initialisers field 5; the graph's operations are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from udp_jax.errors import BadDataError
from udp_jax.runtime import files

_GRAPH, _INITIALIZER = 7, 5
# Fields of a tensor.
_DIMS, _DATA_TYPE, _FLOAT_DATA, _NAME, _RAW_DATA = 1, 2, 4, 8, 9
_DTYPES = {1: "<f4", 2: "|u1", 3: "|i1", 6: "<i4", 7: "<i8", 10: "<f2", 11: "<f8"}


def read_tensors(path: str | Path, *, sha256: str) -> dict[str, np.ndarray]:
  """Reads the initialisers of an ONNX model by name.

  Args:
    path: the file; tensors in files beside it are not read.
    sha256: expected hexadecimal digest of the file; nothing is read unless it matches.

  Raises:
    MissingDataError: the file does not exist.
    BadDataError: the digest differs, or the file is damaged or holds tensors of unknown kinds.
  """
  content = files.read_checked(path, sha256)
  try:
    return dict(
      _tensor(tensor) for graph in _all(content, _GRAPH) for tensor in _all(graph, _INITIALIZER)
    )
  except BadDataError as error:
    raise BadDataError(f"{path}: {error}") from error
  except (IndexError, ValueError, TypeError) as error:
    raise BadDataError(f"{path}: not a readable ONNX file ({error})") from error


def _tensor(content: bytes) -> tuple[str, np.ndarray]:
  dims: list[int] = []
  name, kind, raw = "", 0, b""
  for number, value in _fields(content):
    if number == _DIMS:
      dims += [value] if isinstance(value, int) else _varints(value)
    elif number == _DATA_TYPE and isinstance(value, int):
      kind = value
    elif number == _NAME and isinstance(value, bytes):
      name = value.decode()
    elif number in (_FLOAT_DATA, _RAW_DATA) and isinstance(value, bytes):
      raw += value
    else:
      raise BadDataError(f"tensor {name!r}: field {number} is not supported")
  if kind not in _DTYPES:
    raise BadDataError(f"tensor {name!r}: data type {kind} is not supported")
  return name, np.frombuffer(raw, _DTYPES[kind]).reshape(dims).copy()


def _all(content: bytes, wanted: int) -> Iterator[bytes]:
  for number, value in _fields(content):
    if number == wanted and isinstance(value, bytes):
      yield value


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
  """Yields the fields of a message: their numbers, and integers or bytes."""
  place = 0
  while place < len(content):
    key, place = _varint(content, place)
    number, wire = key >> 3, key & 7
    if wire == 0:
      value, place = _varint(content, place)
      yield number, value
      continue
    size = {1: 8, 5: 4}.get(wire, 0)
    if wire == 2:
      size, place = _varint(content, place)
    elif not size:
      raise BadDataError(f"not a readable ONNX file (wire type {wire})")
    if place + size > len(content):
      raise BadDataError("not a readable ONNX file (it ends too early)")
    yield number, content[place : place + size]
    place += size


def _varints(content: bytes) -> list[int]:
  found, place = [], 0
  while place < len(content):
    value, place = _varint(content, place)
    found.append(value)
  return found


def _varint(content: bytes, place: int) -> tuple[int, int]:
  """Reads seven bits a byte, the lowest first, up to a byte without the eighth bit."""
  value = shift = 0
  while True:
    byte = content[place]
    value |= (byte & 127) << shift
    place, shift = place + 1, shift + 7
    if byte < 128:
      return value, place
    if shift > 63:
      raise BadDataError("not a readable ONNX file (a number of over 64 bits)")
