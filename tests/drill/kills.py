"""Runs killed with SIGKILL at random moments, resumed by the same command until they end."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from tests.drill import ledger, processes, programs
from tests.drill.ledger import Try

# Of a try's kills: mostly one, sometimes the resumed run is killed as well.
_KILLS = (1, 1, 1, 1, 2, 3)
# Kills that come too late are drawn again; so often that this never ends the drill by chance.
_DRAWS = 20
_BY_HAND = ("tmp", "said.out", "said.err")


def undisturbed(kind: str, words: tuple[str, ...], folder: Path, env: dict[str, str]) -> Any:
  """What a run that nobody disturbs makes: {"digests", "seconds"}, made once and kept on disk.

  It is made twice: the first run fills the compilation cache, and the second must make the same
  bytes and says how long a run takes.

  Args:
    kind: for messages.
    words: after `python -m`.
    folder: of this kind; the runs are made in its `run/`.
    env: of the programs.

  Raises:
    RuntimeError: the run fails, or two runs differ: then no kill would show anything.
  """
  known = folder / "undisturbed.json"
  if known.exists():
    return json.loads(known.read_text("utf-8"))
  programs.prepare(words, folder, env)
  made: list[dict[str, str]] = []
  for _ in range(2):
    place = fresh(folder)
    ended = processes.run(words, place, env)
    if ended.code != 0:
      raise RuntimeError(f"{kind}: undisturbed, it ends with {ended.code}: {last_line(ended.err)}")
    made.append(processes.digests(place, ignore=_BY_HAND))
    if left := processes.leftovers(place, ignore=_BY_HAND):
      raise RuntimeError(f"{kind}: undisturbed, {left[0]}")
  if different := processes.differences(*made):
    raise RuntimeError(f"{kind}: two undisturbed runs differ: {different[0]}")
  found = {"digests": made[1], "seconds": ended.seconds}
  known.write_text(json.dumps(found), "utf-8")
  return found


def fresh(folder: Path) -> Path:
  """An empty `run/` in a kind's folder. Always the same path: outputs may name their place."""
  place = folder / "run"
  shutil.rmtree(place, ignore_errors=True)
  place.mkdir(parents=True)
  return place


def attempt(kind: str, number: int, *, seed: int, folder: Path, env: dict[str, str]) -> Try:
  """Kills a run at moments drawn uniformly over an undisturbed run's time, and resumes it.

  Args:
    kind: of `programs.KILLED`.
    number: of the try.
    seed: of the drill.
    folder: of this kind.
    env: of the programs.
  """
  words = programs.KILLED[kind]
  wanted = undisturbed(kind, words, folder, env)
  generator = random.Random(ledger.seed_of(seed, "kills", kind, number))
  place, failures, landed, peak = fresh(folder), [], [], 0.0
  for _ in range(generator.choice(_KILLS)):
    for _ in range(_DRAWS):
      moment = generator.random() * wanted["seconds"]
      program = processes.Program(words, place, env)
      ended = program.wait(moment)
      ended = program.kill() if ended is None else ended
      peak = max(peak, ended.peak_mib)
      if ended.code < 0:
        landed.append(round(moment, 3))
        break
      if ended.code != 0:
        failures.append(f"resumed, it ends with {ended.code}: {last_line(ended.err)}")
        break
      # It was done before the kill came: from the start.
      place, landed = fresh(folder), []
    if failures:
      break
  seconds = 0.0
  if not failures:
    ended = processes.run(words, place, env)
    seconds, peak = ended.seconds, max(peak, ended.peak_mib)
    if ended.code != 0:
      failures.append(f"resumed, it ends with {ended.code}: {last_line(ended.err)}")
    else:
      found = processes.digests(place, ignore=_BY_HAND)
      failures += processes.differences(wanted["digests"], found)
      failures += processes.leftovers(place, ignore=_BY_HAND)
  if failures:
    keep(place, folder / "failed" / f"{number:05d}")
  details = {"killed_at_s": landed, "of_s": round(wanted["seconds"], 3)}
  return Try("kills", kind, number, 1, seconds, peak, tuple(failures), details)


def keep(place: Path, kept: Path) -> None:
  """Keeps the folder of a failed try to be looked at."""
  shutil.rmtree(kept, ignore_errors=True)
  kept.parent.mkdir(parents=True, exist_ok=True)
  shutil.copytree(place, kept, symlinks=True)


def last_line(said: str) -> str:
  """The last line that a program said: of a traceback, the error."""
  lines = [line for line in said.splitlines() if line.strip()]
  return lines[-1][:300] if lines else "nothing said"
