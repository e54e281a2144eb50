"""Two processes on one folder: one works, the other leaves with a line, and the result is whole."""

from __future__ import annotations

import random
from pathlib import Path

from tests.drill import ledger, processes, programs
from tests.drill.kills import fresh, keep, last_line, undisturbed
from tests.drill.ledger import Try
from tests.drill.processes import Ended

_LATEST_S = 1.0
_IN_USE = 4
_IGNORED = ("first.out", "first.err", "second.out", "second.err", "said.out", "said.err")


def attempt(kind: str, number: int, *, seed: int, folder: Path, env: dict[str, str]) -> Try:
  """Starts a second process up to a second after the first, on the same output.

  Args:
    kind: of `programs.RACED`.
    number: of the try.
    seed: of the drill.
    folder: of this kind.
    env: of the programs.
  """
  pair = programs.RACED[kind]
  # Who of the two gets the folder is up to them, and so is whose result stands there.
  wanted = [
    undisturbed(kind, words, folder / f"alone_{position}", env)["digests"]
    for position, words in enumerate(dict.fromkeys(pair))
  ]
  for words in pair:
    programs.prepare(words, folder, env)
  delay = random.Random(ledger.seed_of(seed, "two", kind, number)).random() * _LATEST_S
  place = fresh(folder)
  first = processes.Program(pair[0], place, env, "first")
  ended = first.wait(delay)
  second = processes.Program(pair[1], place, env, "second")
  both: list[Ended] = []
  for program in (first, second):
    ended = program.wait(600)
    both.append(program.kill() if ended is None else ended)
  failures = judge(both)
  if not any(ended.code not in (0, _IN_USE) for ended in both):
    found = processes.digests(place, ignore=_IGNORED)
    different = [processes.differences(alone, found) for alone in wanted]
    if all(different):
      failures += min(different, key=len)
    failures += processes.leftovers(place, ignore=_IGNORED)
  if failures:
    keep(place, folder / "failed" / f"{number:05d}")
  details = {"second_after_s": round(delay, 3), "codes": [ended.code for ended in both]}
  slowest = max(ended.seconds for ended in both)
  peak = max(ended.peak_mib for ended in both)
  return Try("two", kind, number, 1, slowest, peak, tuple(failures), details)


def judge(both: list[Ended]) -> list[str]:
  """One line for each thing that is wrong with how two processes ended."""
  said = []
  for name, ended in zip(("first", "second"), both):
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    if "Traceback (most recent call last)" in ended.err:
      said.append(f"the {name} ends in a traceback: {last_line(ended.err)}")
    elif ended.code == _IN_USE and len(errors) != 1:
      said.append(f"the {name} ends with {_IN_USE} and {len(errors)} lines of error")
    elif ended.code not in (0, _IN_USE):
      said.append(f"the {name} ends with {ended.code}: {last_line(ended.err)}")
  if said:
    return said
  worked = [ended for ended in both if ended.code == 0]
  if not worked:
    return ["both leave, nobody works"]
  # Whoever comes second to the lock finds a finished folder, be it the first that was started.
  if sum("nothing to do" not in ended.err for ended in worked) > 1:
    return ["both work on the folder"]
  return []
