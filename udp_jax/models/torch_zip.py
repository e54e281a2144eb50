"""Reads PyTorch checkpoints (`.pth`) without PyTorch and without running code in them.

A `.pth` file is a pickle, and a pickle is a program. The file's sha256 must therefore be known in
advance and is checked before any byte is interpreted. Even then the unpickler accepts only the few
names that a dictionary of tensors needs.

Both layouts of `torch.save` are supported: the zip archive (PyTorch 1.6 and later) and the older
stream of pickles followed by raw storages, which many published files still use.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from udp_jax.errors import BadDataError
from udp_jax.runtime import files

_DTYPES: dict[str, np.dtype] = {
  "BoolStorage": np.dtype(np.bool_),
  "ByteStorage": np.dtype(np.uint8),
  "CharStorage": np.dtype(np.int8),
  "ShortStorage": np.dtype("<i2"),
  "IntStorage": np.dtype("<i4"),
  "LongStorage": np.dtype("<i8"),
  "HalfStorage": np.dtype("<f2"),
  "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "FloatStorage": np.dtype("<f4"),
  "DoubleStorage": np.dtype("<f8"),
}

# The first two objects in the older layout.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


class _StorageType(NamedTuple):
  dtype: np.dtype


class _Storage(NamedTuple):
  """A flat run of elements; in the older layout its bytes follow the tensors that refer to it."""

  key: str
  dtype: np.dtype
  start: int
  numel: int


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
  return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
  return tensor


_ALLOWED: dict[tuple[str, str], Any] = {
  ("collections", "OrderedDict"): OrderedDict,
  ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,  # Before PyTorch 0.4.
  ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
  ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
  **{("torch", name): _StorageType(dtype) for name, dtype in _DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _ALLOWED:
      raise BadDataError(f"the pickle asks for {module}.{name}, which is not allowed")
    return _ALLOWED[module, name]

  def persistent_load(self, pid: Any) -> _Storage:
    tag, storage_type, key, _device, numel, *view = pid
    if tag != "storage" or not isinstance(storage_type, _StorageType):
      raise BadDataError(f"the pickle names a stored object that is not a tensor: {tag!r}")
    # Only the older layout has a view: (key of the view, first element, number of elements).
    start, numel = view[0][1:] if view and view[0] is not None else (0, numel)
    return _Storage(str(key), storage_type.dtype, int(start), int(numel))


def read_tensors(path: str | Path, *, sha256: str) -> dict[str, np.ndarray]:
  """Reads the tensors of a PyTorch checkpoint without PyTorch.

  Args:
    path: a file written by `torch.save` in either layout.
    sha256: expected hexadecimal digest of the file; nothing is unpickled unless it matches. It is
      required: take it from a source that you trust, not from the file itself.

  Returns:
    Contiguous, independent arrays by name. Names inside nested dictionaries are joined by dots;
    entries that are not tensors (such as an epoch number) are left out.

  Raises:
    MissingDataError: the file does not exist.
    BadDataError: the digest differs, the file is damaged, or its pickle needs anything but tensors,
      dictionaries and plain values.
  """
  content = files.read_checked(path, sha256)
  is_zip = content.startswith(b"PK\x03\x04")
  try:
    return (_read_zip if is_zip else _read_legacy)(content)
  except BadDataError as error:
    raise BadDataError(f"{path}: {error}") from error
  # A damaged or hostile pickle can raise any exception in the unpickler.
  except Exception as error:
    kind = type(error).__name__
    raise BadDataError(f"{path}: not a readable PyTorch checkpoint ({kind}: {error})") from error


def _read_zip(content: bytes) -> dict[str, np.ndarray]:
  with zipfile.ZipFile(io.BytesIO(content)) as archive:
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
      raise BadDataError(f"a checkpoint archive has one data.pkl, this one {len(pickles)}")
    root = pickles[0].removesuffix("data.pkl")
    order = f"{root}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
      raise BadDataError("written on a big-endian machine, which is not supported")
    tree = _Unpickler(io.BytesIO(archive.read(pickles[0]))).load()
    return _tensors(tree, lambda key: archive.read(f"{root}data/{key}"))


def _read_legacy(content: bytes) -> dict[str, np.ndarray]:
  stream = io.BytesIO(content)
  if _Unpickler(stream).load() != _LEGACY_MAGIC or _Unpickler(stream).load() != _LEGACY_PROTOCOL:
    raise BadDataError("neither a zip archive nor a PyTorch stream")
  if not _Unpickler(stream).load()["little_endian"]:
    raise BadDataError("written on a big-endian machine, which is not supported")
  unpickler = _Unpickler(stream)
  tree = unpickler.load()
  itemsizes = {leaf.storage.key: leaf.storage.dtype.itemsize for _, leaf in _leaves(tree)}
  # Use views: the tensors are copied out of `content` later, so storages need no copies.
  view = memoryview(content)
  storages: dict[str, memoryview] = {}
  keys = _Unpickler(stream).load()
  start = stream.tell()
  for key in keys:
    if key not in itemsizes:
      raise BadDataError(f"storage {key} belongs to no tensor, so its size is unknown")
    (numel,) = struct.unpack_from("<q", content, start)
    end = start + 8 + numel * itemsizes[key]
    if numel < 0 or end > len(content):
      raise BadDataError(f"storage {key} runs past the end of the file")
    storages[key] = view[start + 8 : end]
    start = end
  return _tensors(tree, storages.__getitem__)


def _leaves(tree: Any, prefix: str = "") -> list[tuple[str, _Tensor]]:
  if isinstance(tree, _Tensor):
    return [(prefix.removesuffix("."), tree)]
  if not isinstance(tree, Mapping):
    return []
  return [leaf for name, value in tree.items() for leaf in _leaves(value, f"{prefix}{name}.")]


def _tensors(tree: Any, read_storage: Callable[[str], bytes | memoryview]) -> dict[str, np.ndarray]:
  tensors = {}
  for name, (storage, offset, shape, strides) in _leaves(tree):
    flat = np.frombuffer(read_storage(storage.key), dtype=storage.dtype)
    flat = flat[storage.start : storage.start + storage.numel]
    # The file sets the strides: the farthest element must lie inside the storage, or `as_strided`
    # would read memory that is not ours.
    if len(shape) != len(strides) or min((offset, *shape, *strides)) < 0:
      raise BadDataError(f"tensor {name}: bad shape {shape}, strides {strides} or offset {offset}")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= flat.size:
      raise BadDataError(f"tensor {name} reaches past the end of storage {storage.key}")
    byte_strides = tuple(stride * flat.itemsize for stride in strides)
    view = np.lib.stride_tricks.as_strided(flat[offset:], shape, byte_strides, writeable=False)
    tensors[name] = view.copy() if 0 not in shape else np.empty(shape, flat.dtype)
  if not tensors:
    raise BadDataError("there are no tensors in it")
  return tensors
