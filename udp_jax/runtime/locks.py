"""Lets one run at a time use a folder, with a lock that is released when its process dies.

The lock is `flock` on a small hidden file in the folder. Child programs do not inherit it, and the
kernel drops it when the process ends, however it ends. The file itself may then stay behind; the
next run takes it over and removes it when it finishes.

A missing folder is created, and removed again if it stays empty. It stays, empty, where another run
found it there and took it over.
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

from udp_jax.errors import OutputError
from udp_jax.runtime import files

try:
  import fcntl
except ImportError:  # Not a POSIX system.
  fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)

LOCK = ".udp-lock"
# A run that is being killed may hold its lock briefly while another run takes its place.
_PATIENCE_S = 2.0
# Errors of `flock` on file systems without locks (some network and FUSE file systems).
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class Lock(NamedTuple):
  """A lock that this process holds.

  Attributes:
    folder: the locked folder.
    descriptor: file descriptor of the open lock file.
    created: folders created for the lock, innermost first.
  """

  folder: Path
  descriptor: int
  created: tuple[Path, ...]


_held: list[Lock] = []


def acquire(folder: Path) -> Lock | None:
  """Locks a folder for this process. Warns and returns None on a file system without locks.

  Raises:
    OutputError: another run uses the folder, or the folder cannot be created or written.
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
      # Another run finished and removed the folder between these two lines.
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
  """Removes the lock file, and those folders created for it that are empty."""
  # Compare by identity: a newer lock on the same folder may reuse the descriptor's number.
  if not any(held is lock for held in _held):
    return
  _held[:] = [held for held in _held if held is not lock]
  # Unlink while still locked: a waiting run then sees that the file has left the folder.
  with contextlib.suppress(OSError):
    (lock.folder / LOCK).unlink()
  os.close(lock.descriptor)
  _remove_empty(lock.created)


def release_all() -> None:
  """Releases all locks of this process, before it ends by `os._exit`."""
  for lock in reversed(_held.copy()):
    release(lock)


def _try(path: Path) -> int | None:
  """Returns a locked descriptor, -1 if another process holds the lock, None without locking."""
  if fcntl is None:
    return None
  descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # The previous holder may have removed the file; this lock would then be on a deleted file.
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
  with contextlib.suppress(OSError):  # If the disk is full, the lock holds but names no owner.
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(about) + "\n").encode(), 0)
  return descriptor


def _user(path: Path) -> str:
  """Describes the process that uses a folder, as recorded in its lock file."""
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
