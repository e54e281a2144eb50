"""Writes files whole or not at all, and turns write errors into readable messages."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from udp_jax.errors import BadDataError, MissingDataError, OutputError

TEMPORARY_SUFFIX = ".udp-tmp"
_LFS_POINTER = b"version https://git-lfs"

_REASONS = {
  errno.ENOSPC: "no space left on the disk; free some space or choose another output folder",
  errno.EDQUOT: "the disk quota is used up; free some space or choose another output folder",
  errno.EROFS: "the file system is read-only; choose another output folder",
  errno.EACCES: "permission denied; choose an output folder that you may write to",
  errno.EPERM: "permission denied; choose an output folder that you may write to",
  errno.ENOTDIR: "a file stands where a folder is needed; choose another output folder",
  errno.EEXIST: "a file stands where a folder is needed; choose another output folder",
  errno.EISDIR: "a folder stands where a file is needed; choose another output folder",
  errno.ENAMETOOLONG: "the name is too long for this file system; shorten it",
}


def is_temporary(name: str) -> bool:
  """Returns whether a file name is one of our temporary names, left by a killed process."""
  return name.endswith(TEMPORARY_SUFFIX)


def is_device(path: str | os.PathLike) -> bool:
  """Returns whether a path is a device or a pipe, which is written to directly, not replaced."""
  try:
    mode = os.stat(path).st_mode
  except OSError:
    return False
  return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


@contextlib.contextmanager
def output_errors(path: str | os.PathLike) -> Iterator[None]:
  """Turns an `OSError` raised inside the block into a one-line `OutputError` about `path`."""
  try:
    yield
  except OSError as error:
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    raise OutputError(f"cannot write {os.fspath(path)}: {reason}") from error


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
  """Writes a file atomically: temporary name in the same folder, fsync, rename.

  Devices and pipes are written to directly.

  Raises:
    OutputError: the disk is full, read-only or not writable; the temporary file is removed.
  """
  path = Path(path)
  if is_device(path):
    with output_errors(path):
      path.write_bytes(content)
    return
  with output_errors(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    # The prefix is short because the final name may already have the maximum length.
    handle, temporary = tempfile.mkstemp(TEMPORARY_SUFFIX, ".", path.parent)
    try:
      with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
      # mkstemp makes private files; output files should follow the user's umask.
      os.chmod(temporary, 0o666 & ~_UMASK)
      os.replace(temporary, path)
    except BaseException:
      with contextlib.suppress(OSError):
        os.unlink(temporary)
      raise


def write_together(writers: Mapping[Path, Callable[[Path], object]]) -> None:
  """Writes files that belong together; the last one marks the set as complete.

  All files are written and flushed under temporary names first. Then the old mark is removed and
  the new files are renamed, the mark last.

  Args:
    writers: path -> function that writes the file to the path it receives.

  Raises:
    OutputError: as for `write_bytes`; the old files stay unchanged.
  """
  staged = {path: path.with_name(f".{path.name}{TEMPORARY_SUFFIX}") for path in writers}
  try:
    for path, write in writers.items():
      with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(staged[path])
        # Some writers make private files; output files should follow the user's umask.
        staged[path].chmod(0o666 & ~_UMASK)
        with open(staged[path], "rb") as file:
          os.fsync(file.fileno())
    with output_errors(path):
      path.unlink(missing_ok=True)
      for path, temporary in staged.items():
        os.replace(temporary, path)
  finally:
    for temporary in staged.values():
      with contextlib.suppress(OSError):
        temporary.unlink()


def refuse_lfs_pointer(path: str | os.PathLike) -> None:
  """Raises MissingDataError if the file is a Git LFS pointer instead of the real file.

  A clone made without Git LFS holds such text files of about a hundred bytes, not the weights.
  """
  try:
    with open(path, "rb") as file:
      start = file.read(len(_LFS_POINTER))
  except OSError:
    return  # The caller that reads the file reports the error.
  if start == _LFS_POINTER:
    raise MissingDataError(
      f"{os.fspath(path)} is a Git LFS pointer, not the file itself: run `git lfs pull` in its "
      "repository, or download the file again"
    )


def read_checked(path: str | os.PathLike, sha256: str) -> bytes:
  """Reads a file of weights, whose digest must be known before any byte of it is interpreted.

  Raises:
    MissingDataError: the file does not exist.
    BadDataError: it cannot be read, or its SHA-256 is not `sha256` (hexadecimal).
  """
  refuse_lfs_pointer(path)
  try:
    content = Path(path).read_bytes()
  except FileNotFoundError:
    raise MissingDataError(f"{os.fspath(path)}: no such file of weights") from None
  except OSError as error:
    raise BadDataError(f"{os.fspath(path)}: cannot be read: {error.strerror}") from error
  digest = hashlib.sha256(content).hexdigest()
  if digest != sha256.lower():
    raise BadDataError(
      f"{os.fspath(path)}: sha256 is {digest}, expected {sha256}; the file is damaged or not the "
      "one meant, and was not opened: fetch it again"
    )
  return content


def in_package(module: str, relative: str) -> Path | None:
  """Path of a file inside an installed package, which is not imported; None if it is not there."""
  spec = importlib.util.find_spec(module)
  folders = list(spec.submodule_search_locations or ()) if spec else []
  path = Path(folders[0]) / relative if folders else None
  return path if path is not None and path.is_file() else None


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """Reads a JSON object from a file. Raises BadDataError if the file does not hold one."""
  refuse_lfs_pointer(path)
  try:
    content = parse_json(Path(path).read_text("utf-8"))
  except (OSError, ValueError) as error:
    raise BadDataError(f"{os.fspath(path)} is not readable JSON: {error}") from error
  if not isinstance(content, dict):
    raise BadDataError(f"{path} holds {type(content).__name__}, not an object of fields")
  return content


def parse_json(text: str) -> Any:
  """Parses untrusted JSON text with `json.loads`.

  Raises:
    ValueError: the text is not JSON, or is nested too deeply for the recursive parser.
  """
  try:
    return json.loads(text)
  except RecursionError as error:
    raise ValueError("lists or objects are nested too deeply") from error


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes indented, strict JSON (no NaN) atomically. Numpy scalars and arrays are allowed."""
  write_bytes(path, (to_json(value) + "\n").encode())


def to_json(value: Any) -> str:
  """Returns `value` as strict JSON text. Raises TypeError or ValueError if that is impossible."""
  return json.dumps(value, indent=2, allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
  if isinstance(value, np.generic):
    return value.item()
  if isinstance(value, np.ndarray):
    return value.tolist()
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if hasattr(value, "to_dict"):  # ml_collections.ConfigDict
    return value.to_dict()
  raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _read_umask() -> int:
  umask = os.umask(0)
  os.umask(umask)
  return umask


# Read once at import: reading the umask changes it for a moment, which other threads must not see.
_UMASK = _read_umask()
