"""Finished tries on disk: one JSON line a try, so that a stopped drill goes on where it was."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any, NamedTuple


class Try(NamedTuple):
  """The outcome of one try, or of a batch of tries that only makes sense as a whole.

  Attributes:
    part: "kills", "hostile", "budget" or "two".
    kind: the table's row: an entry point, a file format, a save path.
    number: which try of this kind; its seed is drawn from part, kind and number.
    count: how many tries the table counts this as.
    seconds: of the slowest single thing in it (a resumed run, one file, one batch).
    peak_mib: the largest resident memory of any process in it, or above the baseline for files.
    failures: one line for each thing that went wrong; empty if all was well.
    details: what else is worth keeping (where the kill landed, how many files were refused).
  """

  part: str
  kind: str
  number: int
  count: int = 1
  seconds: float = 0.0
  peak_mib: float = 0.0
  failures: tuple[str, ...] = ()
  details: dict[str, Any] = {}


class Ledger:
  """The tries of one working folder, appended as they finish. Threads may share it."""

  def __init__(self, path: Path, identity: str):
    """Reads the tries of earlier calls.

    Args:
      path: the JSONL file; made if need be.
      identity: of the code and seed that is tried. Tries of another identity do not count.
    """
    self._path, self._identity, self._lock = path, identity, threading.Lock()
    self._tries: dict[tuple[str, str, int], Try] = {}
    self.others = 0
    if path.exists():
      for line in path.read_text("utf-8").splitlines():
        try:
          entry = json.loads(line)
          made = Try(**{**entry["try"], "failures": tuple(entry["try"]["failures"])})
        except (ValueError, KeyError, TypeError):
          continue  # Torn by a kill: that try is made again.
        if entry.get("identity") == identity:
          self._tries[made[:3]] = made
        else:
          self.others += 1
      if not path.read_bytes().endswith(b"\n"):
        with open(path, "a", encoding="utf-8") as file:
          file.write("\n")

  def has(self, part: str, kind: str, number: int) -> bool:
    """Whether the try was finished, well or badly."""
    return (part, kind, number) in self._tries

  def add(self, made: Try) -> None:
    """Keeps a finished try; it is on the disk when this returns."""
    line = json.dumps({"identity": self._identity, "try": made._asdict()})
    with self._lock:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      with open(self._path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
      self._tries[made[:3]] = made

  def of(self, part: str, kind: str) -> list[Try]:
    """The tries of a kind by number."""
    return sorted(t for key, t in self._tries.items() if key[:2] == (part, kind))


def seed_of(seed: int, part: str, kind: str, number: int) -> int:
  """The seed of a try: the same everywhere, and unrelated to that of the try before."""
  digest = hashlib.sha256(f"{seed}/{part}/{kind}/{number}".encode()).digest()
  return int.from_bytes(digest[:8], "big")
