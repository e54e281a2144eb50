"""One run for one folder, and what is left of a lock."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.made import ROOT
from udp_jax.data import places
from udp_jax.errors import OutputError
from udp_jax.runtime import locks


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(locks, "_PATIENCE_S", 0.0)


@pytest.mark.usefixtures("impatient")
def test_a_folder_is_locked_once(tmp_path: Path) -> None:
  lock = locks.acquire(tmp_path)
  assert lock is not None
  with pytest.raises(OutputError, match=rf"is in use by process {os.getpid()} on \S+ since"):
    locks.acquire(tmp_path)
  locks.release(lock)
  assert list(tmp_path.iterdir()) == []
  again = locks.acquire(tmp_path)
  assert again is not None
  locks.release(again)
  # A second release is nothing.
  locks.release(again)


def test_folders_that_a_lock_made_go_unless_something_is_in_them(tmp_path: Path) -> None:
  lock = locks.acquire(tmp_path / "a" / "b")
  assert lock is not None and lock.created == (tmp_path / "a" / "b", tmp_path / "a")
  locks.release(lock)
  assert list(tmp_path.iterdir()) == []
  lock = locks.acquire(tmp_path / "a" / "b")
  assert lock is not None
  (tmp_path / "a" / "kept").touch()
  locks.release(lock)
  assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]


def test_all_are_released_at_once(tmp_path: Path) -> None:
  for name in "ab":
    assert locks.acquire(tmp_path / name) is not None
  locks.release_all()
  assert list(tmp_path.iterdir()) == []


def test_a_file_cannot_be_locked(tmp_path: Path) -> None:
  (tmp_path / "file").touch()
  with pytest.raises(OutputError, match="it is a file; choose another output folder"):
    locks.acquire(tmp_path / "file")


@pytest.mark.usefixtures("impatient")
def test_a_lock_file_that_a_dead_run_left_is_taken_over(tmp_path: Path) -> None:
  (tmp_path / locks.LOCK).write_text("nonsense")
  lock = locks.acquire(tmp_path)
  assert lock is not None
  with pytest.raises(OutputError, match=f"in use by process {os.getpid()}"):
    locks.acquire(tmp_path)
  locks.release(lock)


_HOLD = """
import sys, time
from pathlib import Path
from udp_jax.runtime import locks
from udp_jax.errors import OutputError
locks._PATIENCE_S = float(sys.argv[2])
try:
  lock = locks.acquire(Path(sys.argv[1]))
except OutputError as error:
  print(error)
  sys.exit(4)
print("held", flush=True)
time.sleep(float(sys.argv[3]))
locks.release(lock)
"""


def _hold(place: Path, patience: float, seconds: float) -> subprocess.Popen:
  words = [sys.executable, "-c", _HOLD, str(place), str(patience), str(seconds)]
  return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
  place = tmp_path / "out"
  first = _hold(place, 0, 600)
  assert first.stdout is not None and first.stdout.readline() == "held\n"
  second = _hold(place, 0.2, 0)
  said, _ = second.communicate(timeout=60)
  assert second.returncode == 4 and f"in use by process {first.pid}" in said
  assert len(said.splitlines()) == 1
  first.kill()
  first.wait()
  first.stdout.close()
  assert (place / locks.LOCK).exists()  # Nobody's now.
  lock = locks.acquire(place)
  assert lock is not None
  locks.release(lock)
  assert os.listdir(place) == []


def test_of_many_that_start_together_one_at_a_time_runs(tmp_path: Path) -> None:
  """The file is removed by everyone who held it: a lock on a removed file must not count."""
  place = tmp_path / "out"
  started = [_hold(place, 0.3, 2.0) for _ in range(4)]
  said = [process.communicate(timeout=60)[0] for process in started]
  assert [process.returncode for process in started].count(0) >= 1
  assert all("held" in text or "in use by" in text for text in said)
  # Its maker removes the folder, unless the next one is in it by then; that one only found it.
  assert not place.exists() or not list(place.iterdir())


def test_a_lock_on_a_file_that_was_removed_does_not_count(tmp_path: Path) -> None:
  place = tmp_path / "out"
  lock = locks.acquire(place)
  assert lock is not None
  (place / locks.LOCK).unlink()  # As a run that ends does, before it lets go.
  second = locks.acquire(place)
  assert second is not None
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(locks, "_PATIENCE_S", 0.1)
    with pytest.raises(OutputError, match="in use by process"):
      locks.acquire(place)
  for held in (second, lock):
    locks.release(held)


def test_a_lock_that_was_released_releases_no_newer_one(tmp_path: Path) -> None:
  first = locks.acquire(tmp_path / "out")
  assert first is not None
  locks.release(first)
  second = locks.acquire(tmp_path / "out")
  assert second == first and second is not first, "the descriptor's number is used again"
  locks.release(first)
  assert (tmp_path / "out" / locks.LOCK).exists()
  locks.release(second)
  assert not (tmp_path / "out").exists()


def test_file_systems_without_locks_are_named(
  tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
  import errno

  def none(descriptor: int, operation: int) -> None:
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(locks.fcntl, "flock", none)
  with places.use(outputs={"--output": tmp_path / "out"}):
    assert not (tmp_path / "out" / locks.LOCK).exists()
  assert "its file system has no locks; do not start a second run on it" in caplog.text
