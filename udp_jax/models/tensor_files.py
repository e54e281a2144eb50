"""Reads safetensors files tensor by tensor, so that no file is in memory as a whole.

`safetensors` checks a file's header. The values are then read where the header says they are: a
mapped file, or all tensors at once, would stay in memory beside the parameters made from them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from udp_jax.errors import BadDataError
from udp_jax.runtime import files

_DTYPES: dict[str, Any] = {
  "BOOL": np.bool_,
  "U8": np.uint8,
  "I8": np.int8,
  "I16": np.int16,
  "U16": np.uint16,
  "I32": np.int32,
  "U32": np.uint32,
  "I64": np.int64,
  "U64": np.uint64,
  "F8_E4M3": ml_dtypes.float8_e4m3fn,
  "F8_E5M2": ml_dtypes.float8_e5m2,
  "F16": np.float16,
  "BF16": ml_dtypes.bfloat16,
  "F32": np.float32,
  "F64": np.float64,
}


class Stored(NamedTuple):
  """Where a tensor is.

  Attributes:
    file: the safetensors file.
    dtype: its dtype there.
    shape: its shape.
    offset: its first byte in the file.
  """

  file: Path
  dtype: np.dtype
  shape: tuple[int, ...]
  offset: int


class Tensors(Mapping[str, np.ndarray]):
  """Arrays by name, each read anew from its file when it is looked up.

  Attributes:
    stored: `Stored` by name.
    metadata: the texts in the file's header.
  """

  def __init__(self, stored: Mapping[str, Stored], metadata: Mapping[str, str] | None = None):
    self.stored, self.metadata = dict(stored), dict(metadata or {})

  def __getitem__(self, name: str) -> np.ndarray:
    """Reads one tensor. Raises BadDataError if the file has changed or cannot be read."""
    at = self.stored[name]
    count = int(np.prod(at.shape, dtype=np.int64))
    try:
      values = np.fromfile(at.file, at.dtype, count, offset=at.offset)
    except OSError as error:
      raise BadDataError(f"{at.file} cannot be read: {error}") from error
    if values.size != count:
      raise BadDataError(f"{at.file} ends within {name}: it changed while it was read")
    return values.reshape(at.shape)

  def __contains__(self, name: object) -> bool:
    return name in self.stored  # A mapping's own would read the tensor.

  def __iter__(self) -> Iterator[str]:
    return iter(self.stored)

  def __len__(self) -> int:
    return len(self.stored)

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns a tensor's shape without reading its values."""
    return self.stored[name].shape


def open_tensors(path: str | os.PathLike[str]) -> Tensors:
  """Opens a safetensors file; values are read when they are looked up.

  Raises:
    MissingDataError: the file is a Git LFS pointer.
    BadDataError: it is damaged, or has a dtype that this library does not read.
  """
  path = Path(path)
  files.refuse_lfs_pointer(path)
  try:
    with safetensors.safe_open(path, framework="numpy"):
      pass  # The library has checked header, sizes and overlaps.
    with path.open("rb") as file:
      size = int.from_bytes(file.read(8), "little")
      header = json.loads(file.read(size))
  except (OSError, TypeError, ValueError, safetensors.SafetensorError) as error:
    raise BadDataError(f"{path} is not a readable safetensors file: {error}") from error
  metadata = header.pop("__metadata__", None)
  if unknown := [n for n, entry in header.items() if entry["dtype"] not in _DTYPES]:
    raise BadDataError(f"{path}: {unknown[0]} has dtype {header[unknown[0]]['dtype']}, not read")
  stored = {
    name: Stored(
      path, np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"]),
      8 + size + entry["data_offsets"][0],
    )
    for name, entry in header.items()
  }  # fmt: skip
  return Tensors(stored, metadata)
