"""Runs the drill and prints its table. Exit code 1 if anything failed, 130 if it was stopped.

python -m tests.drill                 minutes: some tries of every part
python -m tests.drill --full          the published figures
python -m tests.drill --part=hostile  one part alone
python -m tests.drill --reproduce='png:1234'   one damaged file, read in this process
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from tests.drill import budget, hostile, kills, processes, programs, readers, table, together
from tests.drill.ledger import Ledger, Try

PARTS = ("kills", "hostile", "budget", "two")
# Tries of each kind, or files, or pictures: (a run of minutes, --full).
KILLS, PAIRS = (1, 25), (1, 25)
# Of each of eight formats of pictures, of each of the other kinds.
PICTURE_FILES, OTHER_FILES = (100, 1000), (50, 200)
PICTURES = {"sets": (5_000, 900_000), "singles": (2_000, 100_000), "not finite": (100, 1_000)}
FORMATS = 8


class Task(NamedTuple):
  """A line of the table that is still to be tried.

  Attributes:
    part: of the drill.
    kind: of the part.
    wanted: tries, files or pictures.
    batch: how many of them one entry of the ledger stands for.
    open: makes (function of a try's number, function that ends what it started).
  """

  part: str
  kind: str
  wanted: int
  batch: int
  open: Callable[[], tuple[Callable[[int], Try], Callable[[], None]]]


def tasks(
  parts: Sequence[str], *, full: bool, seed: int, workdir: Path, memory: Path
) -> Iterator[Task]:
  """Everything that a drill of this size tries."""
  env = processes.environment(workdir)

  def simple(module: Any, kind: str) -> Callable[[], Any]:
    folder = workdir / module.__name__.rpartition(".")[2] / _safe(kind)
    attempt = partial(module.attempt, kind, seed=seed, folder=folder, env=env)
    return lambda: (attempt, lambda: None)

  def batched(make: Callable[..., Any], kind: str, batch: int) -> Callable[[], Any]:
    def start() -> Any:
      name = f"{make.__name__.lower()}_{_safe(kind)}"
      places = {"folder": workdir / name, "memory": memory / name}
      made = make(kind, seed=seed, env=env, batch=batch, **places)
      return made.attempt, made.close

    return start

  if "kills" in parts:
    for kind in programs.KILLED:
      yield Task("kills", kind, KILLS[full], 1, simple(kills, kind))
  if "two" in parts:
    for kind in programs.RACED:
      yield Task("two", kind, PAIRS[full], 1, simple(together, kind))
  if "hostile" in parts:
    for number, kind in enumerate(readers.KINDS):
      wanted = (PICTURE_FILES if number < FORMATS else OTHER_FILES)[full]
      start = batched(hostile.Reader, kind, hostile.BATCH)
      yield Task("hostile", kind, wanted, hostile.BATCH, start)
  if "budget" in parts:
    for kind in budget.KINDS:
      wanted = PICTURES[kind][full]
      batch = min(budget.BATCH, wanted)
      start = batched(budget.Saver, kind, batch)
      yield Task("budget", kind, wanted, batch, start)


def work(task: Task, found: Ledger, bar: tqdm) -> None:
  """Makes the tries of a task that the ledger does not have."""
  numbers = [n for n in range(task.wanted // task.batch) if not _has(found, task, n)]
  if not numbers:
    return
  attempt, close = task.open()
  try:
    for number in numbers:
      made = attempt(number)
      found.add(made)
      bar.update()
      for line in made.failures[:3]:
        bar.write(f"failed: {task.part} {task.kind} {number}: {line}", file=sys.stderr)
  finally:
    close()


def _has(found: Ledger, task: Task, number: int) -> bool:
  return found.has(task.part, task.kind, number)


def _safe(kind: str) -> str:
  return "".join(c if c.isalnum() or c in "._-" else "_" for c in kind)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="python -m tests.drill",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--full", action="store_true", help="the sizes of the published figures")
  parser.add_argument("--part", action="append", choices=PARTS, help="only this; may be repeated")
  parser.add_argument("--kind", action="append", help="only this of a part; may be repeated")
  parser.add_argument("--jobs", type=int, default=1, help="lines of the table tried at a time")
  parser.add_argument("--workdir", default="runs/drill", help="a second call goes on there")
  parser.add_argument("--seed", type=int, default=0, help="of all tries")
  parser.add_argument("--reproduce", metavar="KIND:NUMBER", help="read one damaged file, here")
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the drill; the exit code."""
  given = _arguments(argv)
  workdir = Path(given.workdir).absolute()
  if given.reproduce:
    kind, _, number = given.reproduce.rpartition(":")
    print(hostile.reproduce(kind, given.seed, int(number), workdir))
    return 0
  try:
    with processes.sole_use(workdir):
      return _drill(given, workdir)
  except BlockingIOError:
    print(f"error: another drill works in {workdir}", file=sys.stderr)
    return 4


def _drill(given: argparse.Namespace, workdir: Path) -> int:
  from udp_jax.data import manifest

  started = time.monotonic()
  memory = budget.place_for(workdir)
  identity = f"{manifest.code_sha256()} {_own_code()} {given.seed}"
  found = Ledger(workdir / "tries.jsonl", identity)
  if found.others:
    print(f"{found.others} tries of other code or another seed do not count", file=sys.stderr)
  parts = tuple(dict.fromkeys(given.part or PARTS))
  wanted = [
    task
    for task in tasks(parts, full=given.full, seed=given.seed, workdir=workdir, memory=memory)
    if not given.kind or task.kind in given.kind
  ]
  previous = [signal.signal(n, _stop) for n in (signal.SIGINT, signal.SIGTERM)]
  broken: list[str] = []
  try:
    total = sum(t.wanted // t.batch for t in wanted)
    done = sum(_has(found, t, n) for t in wanted for n in range(t.wanted // t.batch))
    with (
      tqdm(total=total, initial=done, desc="drill", unit="try") as bar,
      ThreadPoolExecutor(given.jobs) as pool,
    ):
      running = {pool.submit(work, task, found, bar): task for task in wanted}
      for future in as_completed(running):
        task = running[future]
        if (error := future.exception()) is None:
          continue
        if not isinstance(error, processes.Stopped):
          broken.append(f"{task.part} {task.kind}: {type(error).__name__}: {error}")
          bar.write(f"failed: {broken[-1]}", file=sys.stderr)
  finally:
    processes.GROUP.stop()
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), previous):
      signal.signal(number, handler)
    shutil.rmtree(memory, ignore_errors=True)
  if _STOPPED.is_set():
    print("stopped; finished tries are kept: run the same command to go on", file=sys.stderr)
    return 130
  return _report(given, workdir, wanted, found, broken, memory, time.monotonic() - started)


_STOPPED = threading.Event()


def _stop(number: int, frame: Any) -> None:
  """Kills what runs. Threads that wait for it raise `Stopped`, and so do those not begun."""
  del number, frame
  _STOPPED.set()
  # Not here: the lock may be held by the code that this handler interrupts.
  threading.Thread(target=processes.GROUP.stop).start()


def _own_code() -> str:
  import hashlib

  folder = Path(__file__).parent
  digest = hashlib.sha256()
  for path in sorted(folder.glob("*.py")):
    digest.update(path.read_bytes())
  return digest.hexdigest()[:16]


def _report(
  given: argparse.Namespace,
  workdir: Path,
  wanted: Sequence[Task],
  found: Ledger,
  broken: Sequence[str],
  memory: Path,
  seconds: float,
) -> int:
  from udp_jax.runtime import files, provenance

  rows = [table.row(t.part, t.kind, found.of(t.part, t.kind), t.wanted) for t in wanted]
  hardware = provenance.hardware()
  about = {
    "command": provenance.command(),
    "seed": given.seed,
    "commit": provenance.commit() or "not a checkout",
    "hardware": f"{hardware['cores']} cores of {hardware['processor']}, {hardware['system']}",
    "versions": ", ".join(f"{name} {v}" for name, v in provenance.versions().items()),
    "duration of this call": f"{seconds / 60:.1f} minutes",
    "pictures were saved": "on a disk in memory"
    if memory.is_relative_to(budget.MEMORY)
    else f"in {memory}",
    "worst s": "wall time of a try's last run, of the slower of two processes, of a batch of "
    f"{budget.BATCH:,} pictures; processor time of a damaged file",
    "peak MiB": "resident memory of one process; for damaged files what they add to the reader's",
  }
  text = table.markdown(rows, about)
  if broken:
    text += "\nWhat could not be tried:\n\n" + "".join(f"- {line}\n" for line in broken)
  report = {"about": about, "rows": [entry._asdict() for entry in rows], "broken": list(broken)}
  files.write_json(workdir / "drill.json", report)
  files.write_bytes(workdir / "drill.md", text.encode())
  print(text)
  complete = all(entry.tries >= entry.wanted for entry in rows)
  return 1 if broken or not complete or any(entry.failed for entry in rows) else 0


if __name__ == "__main__":
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  sys.exit(main())
