"""Damaged and malicious files, read in worker processes that are replaced when they die or hang."""

from __future__ import annotations

import json
import os
import resource
import selectors
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.drill import ledger, processes
from tests.drill.ledger import Try

BATCH = 50
# Of a file: processor seconds, and wall seconds on a machine that is busy with other things.
HANG_S, HANG_WALL_S = 10.0, 90.0
# Over what the worker takes before it reads anything.
BOUND_MIB = 2048
_TICKS = os.sysconf("SC_CLK_TCK")


class Worker:
  """A process that answers requests by lines of JSON."""

  def __init__(self, words: Sequence[str], folder: Path, env: dict[str, str]):
    """Starts `python -m WORDS`, whose errors go to `folder`/worker.err."""
    folder.mkdir(parents=True, exist_ok=True)
    processes.GROUP.check()
    self._said = open(folder / "worker.err", "wb")
    self.process = subprocess.Popen(
      [sys.executable, "-m", *words],
      cwd=processes.ROOT,
      env=env,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._said,
      process_group=0,
    )
    processes.GROUP.add(self.process.pid)
    self._selector = selectors.DefaultSelector()
    assert self.process.stdout is not None
    self._selector.register(self.process.stdout, selectors.EVENT_READ)
    os.set_blocking(self.process.stdout.fileno(), False)
    self._rest = b""

  def ask(self, request: dict[str, Any]) -> None:
    """Gives it a batch to read. A worker that is dead already shows that in `lines`."""
    assert self.process.stdin is not None
    try:
      self.process.stdin.write(json.dumps(request).encode() + b"\n")
      self.process.stdin.flush()
    except BrokenPipeError:
      pass

  def lines(self) -> list[dict[str, Any]] | None:
    """What it said since, waiting for up to half a second; None if it is dead."""
    processes.GROUP.check()
    assert self.process.stdout is not None
    if not self._selector.select(0.5):
      return []
    data = self.process.stdout.read()
    if not data:
      return None
    *whole, self._rest = (self._rest + data).split(b"\n")
    return [json.loads(line) for line in whole]

  def cpu_seconds(self) -> float:
    """Processor time of the process so far."""
    try:
      fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
      return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS

  def close(self) -> int:
    """Kills it if need be; its exit code."""
    if self.process.poll() is None:
      assert self.process.stdin is not None
      self.process.stdin.close()
      try:
        self.process.wait(5)
      except subprocess.TimeoutExpired:
        pass
    processes.kill_group(self.process.pid)
    code = self.process.wait()
    processes.GROUP.drop(self.process.pid)
    self._selector.close()
    self._said.close()
    return code


class Reader:
  """Tries batches of one kind, in one worker after the other."""

  def __init__(
    self,
    kind: str,
    *,
    seed: int,
    folder: Path,
    memory: Path,
    env: dict[str, str],
    batch: int = BATCH,
  ):
    """Prepares; the first batch starts a worker.

    Args:
      kind: of `readers.KINDS`.
      seed: of the drill.
      folder: for what is found.
      memory: for the files that are tried.
      env: of the workers.
      batch: files a try.
    """
    self._kind, self._seed, self._folder = kind, seed, folder
    self._batch, self._worker = batch, None
    words = ("tests.drill.hostile", kind, str(seed), str(folder), str(memory))
    self._start = partial(Worker, words, folder, env)

  def attempt(self, number: int) -> Try:
    """Reads the files of one batch, each of them once, however many workers that takes."""
    first, skip = number * self._batch, set[int]()
    seconds, peak, failures = 0.0, 0.0, list[str]()
    outcomes = {"read": 0, "refused": 0}
    finished = False
    while not finished:
      if self._worker is None:
        self._worker = self._start()
      worker = self._worker
      worker.ask({"first": first, "count": self._batch, "skip": sorted(skip)})
      current: int | None = None
      started, cpu, what = time.monotonic(), worker.cpu_seconds(), ""
      while not (finished or what):
        lines = worker.lines()
        for line in lines or []:
          seconds, peak = max(seconds, line["seconds"]), max(peak, line["peak_mib"])
          failures += line["failures"]
          started, cpu, current = time.monotonic(), worker.cpu_seconds(), line["next"]
          if line["outcome"]:
            skip.add(line["number"])
            outcomes[line["outcome"]] = outcomes.get(line["outcome"], 0) + 1
          finished |= line["finished"]
        if lines is None:
          code = worker.close()
          # A worker that leaves by itself has met its bound of memory: another takes the rest.
          what = f"kills the reader ({code})" if code or current is not None else "left"
        elif current is not None and worker.cpu_seconds() - cpu > HANG_S:
          what, seconds = f"hangs for over {HANG_S:g} s", max(seconds, HANG_S)
        elif time.monotonic() - started > HANG_WALL_S:
          what = f"hangs for over {HANG_WALL_S:g} s without working"
      if what:
        worker.close()
        self._worker = None
      if what and what != "left":
        failures.append(self._finding(current, what))
        # Without a file it is the folder as a whole, and another worker would meet the same.
        finished = current is None
        skip |= set() if current is None else {current}
    count = self._batch
    return Try(
      "hostile", self._kind, number, count, seconds, peak, tuple(failures), {"outcomes": outcomes}
    )

  def _finding(self, number: int | None, what: str) -> str:
    if number is None:
      return f"{self._kind}: a folder of such files {what}"
    kept = keep(self._folder, self._kind, self._seed, number, what)
    return f"{self._kind} {number} {what}; kept in {kept}"

  def close(self) -> None:
    """Ends the worker."""
    if self._worker is not None:
      self._worker.close()
      self._worker = None


def seed_of(seed: int, kind: str, number: int) -> int:
  """The seed of one file."""
  return ledger.seed_of(seed, "hostile", kind, number)


def keep(folder: Path, kind: str, seed: int, number: int, what: str) -> Path:
  """Keeps a file that something was found with, and what that was."""
  from tests.drill import readers

  place = folder / "found" / f"{number:06d}"
  place.mkdir(parents=True, exist_ok=True)
  file_seed = seed_of(seed, kind, number)
  name = Path(readers.KINDS[kind].name.format(number)).name
  (place / name).write_bytes(readers.make(kind, file_seed))
  again = f"python -m tests.drill --seed={seed} --reproduce='{kind}:{number}'"
  (place / "what.txt").write_text(f"{again}\nseed of the file: {file_seed}\n\n{what}\n")
  return place


def reproduce(kind: str, seed: int, number: int, folder: Path) -> str:
  """Reads one damaged file in this process; raises what the reader raises."""
  from tests.drill import readers

  place = readers.Folder(folder / "reproduced")
  content = readers.make(kind, seed_of(seed, kind, number))
  path = readers.place_file(kind, number, content, place)
  print(f"{path}: {len(content)} bytes")
  said = readers.outcome(readers.KINDS[kind].use, place, path)
  place.check()
  return said


def _work(kind: str, seed: int, folder: Path, memory: Path) -> None:
  """The worker: reads requests, answers line by line."""
  answers = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)  # What libraries print is no answer.
  from tests.drill import readers

  place = readers.Folder(memory)
  given = readers.KINDS[kind]
  readers.make(kind, 0)
  place.check()  # Whatever is imported at the first use belongs to the baseline.
  place.clear()
  baseline = _peak_mib()
  virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
  limit = virtual + ((BOUND_MIB + 2048) << 20)
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # What takes more must not take it all.

  def answer(**fields: Any) -> None:
    plain = {"seconds": 0.0, "peak_mib": 0.0, "failures": [], "finished": False}
    plain |= {"outcome": "", "number": None, "next": None}
    answers.write(json.dumps(plain | fields) + "\n")

  def guarded(function: Any, number: int | None) -> tuple[str, list[str], float, float]:
    start = time.process_time()
    failures = []
    said = "failed"
    try:
      said = function() or "read"
    except Exception as error:
      what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
      if number is None:
        failures.append(f"{kind}: a folder of such files: {what}")
      else:
        kept = keep(folder, kind, seed, number, traceback.format_exc())
        failures.append(f"{kind} {number}: {what}; kept in {kept}")
    seconds, peak = time.process_time() - start, max(0.0, _peak_mib() - baseline)
    for limit, value, unit in ((HANG_S, seconds, "s"), (BOUND_MIB, peak, "MiB")):
      if value > limit:
        what = f"takes {value:.1f} {unit}, more than {limit:g}"
        kept = keep(folder, kind, seed, number or 0, what)
        failures.append(f"{kind} {number} {what}; kept in {kept}")
    return said, failures, seconds, peak

  for line in sys.stdin:
    request = json.loads(line)
    over = False
    wanted = range(request["first"], request["first"] + request["count"])
    for number in (n for n in wanted if n not in request["skip"]):
      content = readers.make(kind, seed_of(seed, kind, number))
      path = readers.place_file(kind, number, content, place)
      answer(next=number)
      said, failures, seconds, peak = guarded(
        lambda path=path: readers.outcome(given.use, place, path), number
      )
      if not given.together:
        lost = guarded(place.check_good, number)[1]
        failures += lost
        place.restore() if lost else place.clear()
      elif failures:
        path.unlink(missing_ok=True)  # So that the folder as a whole shows something else.
      answer(number=number, outcome=said, failures=failures, seconds=seconds, peak_mib=peak)
      over |= peak > BOUND_MIB
      if over:
        return  # Memory that was reached once hides what others take.
    _, failures, _, peak = guarded(place.check, None)
    place.clear()
    answer(finished=True, failures=failures, peak_mib=peak)


def _peak_mib() -> float:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
  _work(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
