"""One run for one folder: a lock that the death of its process releases.

The lock is `flock` on a small hidden file in the folder. It is not inherited by programs that the
process starts, and the kernel drops it when the process ends, however it ends. The file itself may
stay behind then; the next run takes it over and removes it at its own end.

A folder that is not there yet is made, and removed again if nothing was put in it; it stays, empty,
where another run found it there and took it over.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import logging
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from udp_jax.data import files
from udp_jax.errors import OutputError

try:
  import fcntl
except ImportError:  # Not a POSIX system.
  fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)

LOCK = ".udp-lock"
# A run that is being killed may hold its lock for a moment still, while another takes its place.
_PATIENCE_S = 2.0
# What flock answers where the file system has none (some network and FUSE file systems).
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class Lock(NamedTuple):
  """A lock that is held.

  Attributes:
    folder: that is locked.
    descriptor: of the open lock file.
    created: folders that were made for it, innermost first.
  """

  folder: Path
  descriptor: int
  created: tuple[Path, ...]


_held: list[Lock] = []


def acquire(folder: Path) -> Lock | None:
  """Locks a folder for this process; None where the file system has no locks, which is said.

  Raises:
    OutputError: another run uses the folder, or it cannot be made or written.
  """
  with files.output_errors(folder):
    if folder.exists() and not folder.is_dir():
      raise OutputError(f"cannot write {folder}: it is a file; choose another output folder")
    created = tuple(path for path in (folder, *folder.parents) if not path.exists())
  deadline = time.monotonic() + _PATIENCE_S
  while True:
    try:
      with files.output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _try(folder / LOCK)
    except OutputError as error:
      # Another run's end removed the folder between the two lines.
      if isinstance(error.__cause__, FileNotFoundError) and time.monotonic() < deadline:
        continue
      _remove_empty(created)
      raise
    if descriptor is None:
      _log.warning("%s: its file system has no locks; do not start a second run on it", folder)
      with contextlib.suppress(OSError):
        (folder / LOCK).unlink()
      _remove_empty(created)
      return None
    if descriptor >= 0:
      break
    if time.monotonic() > deadline:
      raise OutputError(
        f"{folder} is {_user(folder / LOCK)}; wait for its end, or choose another folder"
      )
    time.sleep(0.05)
  lock = Lock(folder, descriptor, created)
  _held.append(lock)
  return lock


def release(lock: Lock) -> None:
  """Removes the lock file and the folders that were made for it and are empty."""
  if lock not in _held:
    return
  _held.remove(lock)
  # While it is held: whoever waits for it sees that the file is no longer the folder's.
  with contextlib.suppress(OSError):
    (lock.folder / LOCK).unlink()
  os.close(lock.descriptor)
  _remove_empty(lock.created)


def release_all() -> None:
  """Releases what this process holds; for a process that ends by `os._exit`."""
  for lock in reversed(_held.copy()):
    release(lock)


def _try(path: Path) -> int | None:
  """A descriptor that holds the lock, -1 if another process does, None where there are no locks."""
  if fcntl is None:
    return None
  descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # The one who held it may have removed the file: then this is a lock on a file that is gone.
    mine, there = os.fstat(descriptor), os.stat(path)
    if (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino):
      raise BlockingIOError
  except (BlockingIOError, FileNotFoundError):
    os.close(descriptor)
    return -1
  except OSError as error:
    os.close(descriptor)
    if error.errno in _NO_LOCKS:
      return None
    raise
  about = {
    "pid": os.getpid(),
    "host": socket.gethostname(),
    "since": datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
  }
  with contextlib.suppress(OSError):  # A full disk: the lock holds, and is nobody's by name.
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(about) + "\n").encode(), 0)
  return descriptor


def _user(path: Path) -> str:
  """Who uses a folder, by the lock file that says so."""
  about: dict[str, Any] = {}
  with contextlib.suppress(OSError, ValueError):
    about = json.loads(path.read_text("utf-8"))
  if not isinstance(about, dict) or not {"pid", "host", "since"} <= about.keys():
    return "in use by another process"
  return f"in use by process {about['pid']} on {about['host']} since {about['since']}"


def _remove_empty(folders: Sequence[Path]) -> None:
  for folder in folders:
    with contextlib.suppress(OSError):
      folder.rmdir()
