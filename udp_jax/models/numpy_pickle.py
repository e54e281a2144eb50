"""Reads pickled dictionaries of NumPy arrays without running code in them.

As for `torch_zip`, the file's SHA-256 must be known in advance. The unpickler knows the three names
that an array's pickle needs, and gives stand-ins for them: no class of NumPy is called, and only
plain number types are accepted.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from udp_jax.errors import BadDataError
from udp_jax.runtime import files

_DTYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")


class _Dtype:
  """A type of numbers; its state holds the byte order."""

  def __init__(self, name: str, *_: Any):
    if name not in _DTYPES:
      raise BadDataError(f"the pickle holds values of type {name!r}, not numbers")
    self.name, self.order = name, "|"

  def __setstate__(self, state: tuple) -> None:
    if state[1] not in ("<", ">", "|", "="):
      raise BadDataError(f"the pickle names the byte order {state[1]!r}")
    self.order = state[1]


class _Array:
  """An array to be; its state holds shape, type, order and bytes."""

  def __setstate__(self, state: tuple) -> None:
    _, self.shape, self.dtype, self.fortran, self.content = state

  def made(self) -> np.ndarray:
    flat = np.frombuffer(self.content, f"{self.dtype.order}{self.dtype.name}")
    array = flat.reshape(self.shape, order="F" if self.fortran else "C")
    return np.array(array, array.dtype.newbyteorder("="), order="C")


def _reconstruct(*_: Any) -> _Array:
  return _Array()


_ALLOWED: dict[tuple[str, str], Any] = {
  # NumPy 2 writes the first form, and reads both.
  ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
  ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
  ("numpy", "ndarray"): _Array,
  ("numpy", "dtype"): _Dtype,
}


class _Unpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _ALLOWED:
      raise BadDataError(f"the pickle asks for {module}.{name}, which is not allowed")
    return _ALLOWED[module, name]


def read_arrays(path: str | Path, *, sha256: str) -> dict[str, np.ndarray]:
  """Reads the arrays of a pickled dictionary.

  Args:
    path: a file written by `pickle.dump`.
    sha256: expected hexadecimal digest of the file; nothing is unpickled unless it matches.

  Returns:
    Independent arrays by name, the names of nested dictionaries joined by dots; other entries are
    left out.

  Raises:
    MissingDataError: the file does not exist.
    BadDataError: the digest differs, the file is damaged, or its pickle needs anything but arrays
      of numbers, dictionaries and plain values.
  """
  content = files.read_checked(path, sha256)
  try:
    found = dict(_leaves(_Unpickler(io.BytesIO(content)).load()))
    if not found:
      raise BadDataError("there are no arrays in it")
    return {name: array.made() for name, array in found.items()}
  except BadDataError as error:
    raise BadDataError(f"{path}: {error}") from error
  # A damaged or hostile pickle can raise any exception in the unpickler.
  except Exception as error:
    kind = type(error).__name__
    raise BadDataError(f"{path}: not a readable pickle of arrays ({kind}: {error})") from error


def _leaves(tree: Any, prefix: str = "") -> list[tuple[str, _Array]]:
  if isinstance(tree, _Array):
    return [(prefix.removesuffix("."), tree)]
  if not isinstance(tree, Mapping):
    return []
  return [leaf for name, value in tree.items() for leaf in _leaves(value, f"{prefix}{name}.")]
