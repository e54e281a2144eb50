"""Programs in process groups of their own: started, killed, waited for; their folders compared."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]

# What differs between two runs of the same thing: times, and the places and machines of a run.
_TIMES = ("metrics.jsonl", "run.json", "report.html")
_UNSTABLE_KEYS = frozenset(
  {
    *(
      "created",
      "date",
      "versions",
      "hardware",
      "started",
      "ended",
      "seconds",
      "command",
      "commit",
    ),
    *("compile_seconds", "code_sha256", "processes", "places", "folder"),
  }
)
_TEMPORARY = (".udp-tmp", "orbax-checkpoint-tmp")


class Stopped(Exception):
  """The drill was asked to stop; running programs are killed and finished tries are kept."""


class Ended(NamedTuple):
  """How a program ended: exit code (negative: a signal), what it said, its time and memory."""

  code: int
  out: str
  err: str
  seconds: float
  peak_mib: float


class Group:
  """The running programs of this drill, so that all of them can be killed at once."""

  def __init__(self) -> None:
    self._lock, self._running, self.stopping = threading.Lock(), set[int](), threading.Event()

  def add(self, pid: int) -> None:
    with self._lock:
      if self.stopping.is_set():
        kill_group(pid)
      self._running.add(pid)

  def drop(self, pid: int) -> None:
    with self._lock:
      self._running.discard(pid)

  def stop(self) -> None:
    """Kills every running program; whoever waits for one raises `Stopped`."""
    with self._lock:
      self.stopping.set()
      for pid in self._running:
        kill_group(pid)

  def check(self) -> None:
    if self.stopping.is_set():
      raise Stopped


GROUP = Group()


def environment(workdir: Path) -> dict[str, str]:
  """For programs that compile in a hurry, and the same thing only once."""
  return {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
    "JAX_COMPILATION_CACHE_DIR": str(workdir / "xla"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    # What the entry points ask for by starting anew, which these need not.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
  }


class Program:
  """A program in a process group of its own, that says what it says into files."""

  def __init__(self, words: Sequence[str], folder: Path, env: dict[str, str], name: str = "said"):
    """Starts `python -m WORDS` in `folder`."""
    GROUP.check()
    self._paths = [folder / f"{name}.{end}" for end in ("out", "err")]
    self.started = time.monotonic()
    with open(self._paths[0], "wb") as out, open(self._paths[1], "wb") as err:
      self._process = subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        process_group=0,
      )
    self.pid = self._process.pid
    self._ended: Ended | None = None
    self._waiter = threading.Thread(target=self._wait, daemon=True)
    GROUP.add(self.pid)
    self._waiter.start()

  def _wait(self) -> None:
    # Not Popen.wait: this way the kernel tells the memory of this process and of its children.
    _, status, usage = os.wait4(self.pid, 0)
    seconds = time.monotonic() - self.started
    self._process.returncode = os.waitstatus_to_exitcode(status)
    out, err = (path.read_text("utf-8", errors="replace") for path in self._paths)
    self._ended = Ended(self._process.returncode, out, err, seconds, usage.ru_maxrss / 1024)

  def wait(self, timeout: float) -> Ended | None:
    """How it ended, or None if it still runs after `timeout` seconds."""
    self._waiter.join(timeout)
    if self._ended is not None:
      GROUP.drop(self.pid)
    GROUP.check()
    return self._ended

  def kill(self) -> Ended:
    """SIGKILL to the whole group; how the program ended (perhaps before that)."""
    kill_group(self.pid)
    while (ended := self.wait(60)) is None:
      kill_group(self.pid)
    return ended


def kill_group(pid: int) -> None:
  """Kills a process group that may be gone already."""
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(pid, signal.SIGKILL)


def run(words: Sequence[str], folder: Path, env: dict[str, str], *, timeout: float = 600) -> Ended:
  """Runs `python -m WORDS` to its end. One that takes longer than `timeout` is killed."""
  program = Program(words, folder, env)
  ended = program.wait(timeout)
  return program.kill() if ended is None else ended


def digests(folder: Path, *, ignore: Sequence[str] = ()) -> dict[str, str]:
  """SHA-256 of every file below a folder, by relative path, without what times and places decide.

  JSON files lose the fields that say when, where and by which versions they were written.
  Checkpoints are left out: which of them are left depends on where a run was resumed.

  Args:
    folder: of a run.
    ignore: first parts of relative paths to leave out.
  """
  found = {}
  for path in sorted(folder.rglob("*")):
    relative = path.relative_to(folder)
    skipped = relative.parts[0] in ignore or "checkpoints" in relative.parts
    if skipped or path.name in _TIMES or not path.is_file():
      continue
    # Of a lock it matters whether its file stays, not who wrote it.
    content = b"" if is_lock(path) else path.read_bytes()
    if path.suffix == ".json":
      with contextlib.suppress(ValueError):
        content = json.dumps(_stable(json.loads(content)), sort_keys=True).encode()
    found[relative.as_posix()] = hashlib.sha256(content).hexdigest()
  return found


def _stable(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _stable(inner) for key, inner in value.items() if key not in _UNSTABLE_KEYS}
  return [_stable(inner) for inner in value] if isinstance(value, list) else value


def differences(wanted: dict[str, str], found: dict[str, str]) -> list[str]:
  """One line for each kind of difference between two results of `digests`."""
  said = []
  for what, names in (
    ("missing", wanted.keys() - found.keys()),
    ("left over", found.keys() - wanted.keys()),
    ("other bytes", {name for name in wanted.keys() & found if wanted[name] != found[name]}),
  ):
    if names:
      said.append(f"{len(names)} files {what}: {', '.join(sorted(names)[:4])}")
  return said


def leftovers(folder: Path, *, ignore: Sequence[str] = ()) -> list[str]:
  """One line for each temporary file, mark of an unfinished folder, and lock that is still held."""
  said = []
  for path in sorted(folder.rglob("*")):
    relative = path.relative_to(folder)
    if relative.parts[0] in ignore:
      continue
    if any(mark in path.name for mark in _TEMPORARY):
      said.append(f"temporary file left: {relative}")
    elif path.name == ".incomplete":
      said.append(f"folder left unfinished: {relative.parent}")
    elif is_lock(path) and path.is_file() and _held(path):
      said.append(f"lock still held: {relative}")
  return said


def is_lock(path: Path) -> bool:
  """Whether a file is one that processes lock."""
  return path.name.endswith("lock")


def _held(path: Path) -> bool:
  try:
    with open(path, "rb") as file:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError:
    return True
  return False


@contextlib.contextmanager
def sole_use(folder: Path) -> Iterator[None]:
  """Holds a lock on the drill's own working folder.

  Raises:
    BlockingIOError: another drill works there.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / "drill.lock", "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield
