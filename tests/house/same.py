"""Whether two checkouts make the same files: the same programs, machine, flags and seeds in both.

  python -m tests.house.same BEFORE AFTER
  python -m tests.house.same BEFORE AFTER --only=eudp_demo,protect
  python -m tests.house.same --list

Every program runs in an empty folder, and every checkout compiles into an empty cache. Compared
are the bytes of PNG files and arrays, manifests but for when and by which code they were made, and
every number of report.json and cells.csv. Exit code 1 if anything differs or a program fails.
Manifests and reports also hold the settings of a run: where a config writes down what used to be a
default, --settings_may_differ lists the difference and lets it pass.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.drill import programs

_ARRAYS = (".npy", ".npz", ".safetensors")
# When a manifest was made, and by which code.
_OF_THE_MAKING = ("created", "versions", "code_sha256")
# Where manifests and reports hold settings.
_SETTINGS = re.compile(r"(?:^|/)(?:config|options)/")
# Of many differences, those that are shown.
_SHOWN = 20


class Run(NamedTuple):
  """A program of the comparison, run in a folder with `input/` beside it.

  Attributes:
    words: what follows `python -m`.
    processes: how many run it together.
  """

  words: tuple[str, ...]
  processes: int = 1


_PROTECT = (
  *("experiments.protect", "--config=demo_pixels:smoke", "--method=eudp"),
  *(f"--input=../{programs.INPUT}", "--output=protected", "--noprogress"),
)
_STUDY = ("--workdir=work", "--noprogress")
RUNS = {
  "eudp_demo": Run(("experiments.eudp", "--config=demo_pixels:smoke", *_STUDY)),
  "eudp_tiny_ldm": Run(("experiments.eudp", "--config=tiny_ldm:smoke", *_STUDY)),
  "protect": Run(_PROTECT),
  "protect_streamed": Run((*_PROTECT, "--config.performance.shard_batches=1")),
  "protect_resized": Run((*_PROTECT, "--resize")),
  "protect_two_processes": Run((*_PROTECT, "--resize"), processes=2),
  "impress_demo": Run(("experiments.impress", "--config=demo:smoke", *_STUDY)),
}


class Made(NamedTuple):
  """What a program left behind: its exit code, the end of what it said, and its folder."""

  code: int
  said: str
  folder: Path


class Compared(NamedTuple):
  """How many files and numbers of two folders were compared, and what differs.

  Attributes:
    files: files of the first folder that were compared.
    numbers: numbers and words in them; bytes are not counted.
    differences: one line for each, settings left out.
    settings: one line for each setting that differs.
  """

  files: int
  numbers: int
  differences: list[str]
  settings: list[str]


def command(run: Run, checkout: Path) -> list[str]:
  """The command line of a program in a checkout."""
  words = [sys.executable, "-m", *run.words]
  if run.processes == 1:
    return words
  local = str(checkout / "launch" / "local.sh")
  return ["bash", local, str(run.processes), "--log_dir=../logs", "--", *words]


def execute(run: Run, checkout: Path, folder: Path, cache: Path) -> Made:
  """Runs a program of a checkout in a new folder."""
  folder.mkdir(parents=True)
  programs.make_input(folder.parent / programs.INPUT)
  env = os.environ | {
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(checkout),
  }
  done = subprocess.run(
    command(run, checkout), cwd=folder, env=env, capture_output=True, text=True, check=False
  )
  return Made(done.returncode, (done.stdout + done.stderr)[-1000:], folder)


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
  """(place, value) of everything in a JSON value that is no list and no object."""
  inner = value.items() if isinstance(value, dict) else enumerate(value)
  for key, one in inner:
    here = f"{place}/{key}"
    if isinstance(one, dict | list) and one:
      yield from _leaves(one, here)
    else:
      yield here, one


def _manifest(path: Path) -> dict[str, Any]:
  read = json.loads(path.read_text("utf-8"))
  return dict(_leaves({key: value for key, value in read.items() if key not in _OF_THE_MAKING}))


def _numbers(path: Path) -> dict[str, Any]:
  """What a report measured: all leaves that are no text."""
  if path.suffix == ".csv":
    with path.open(encoding="utf-8", newline="") as file:
      return {f"line {n}": tuple(line) for n, line in enumerate(csv.reader(file), 1)}
  leaves = _leaves(json.loads(path.read_text("utf-8")))
  return {place: value for place, value in leaves if not isinstance(value, str)}


def _arrays(path: Path) -> dict[str, Any]:
  """Bytes; of the arrays of an .npz file each its own, as the file holds the time too."""
  if path.suffix != ".npz":
    return {"": path.read_bytes()}
  with np.load(path) as arrays:
    return {name: (v.dtype.str, v.shape, v.tobytes()) for name, v in arrays.items()}


def _content(path: Path) -> dict[str, Any] | None:
  """What is compared of a file, by place in it; None where nothing is."""
  if path.suffix == ".png" or path.suffix in _ARRAYS:
    return _arrays(path)
  if path.name == "manifest.json":
    return _manifest(path)
  if path.name in ("report.json", "cells.csv"):
    return _numbers(path)
  return None


def _contents(folder: Path) -> dict[str, dict[str, Any]]:
  """What is compared of a folder, by file. Where the folder is does not count."""
  here = str(folder.parent)
  found = {
    path.relative_to(folder).as_posix(): _content(path)
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }
  return {
    name: {
      place: value.replace(here, "HERE") if isinstance(value, str) else value
      for place, value in content.items()
    }
    for name, content in found.items()
    if content is not None
  }


def _shown(content: dict[str, Any], place: str) -> str:
  if place not in content:
    return "is missing"
  value = content[place]
  return "has other bytes" if isinstance(value, bytes) else str(value)[:60]


def compare(before: Path, after: Path) -> Compared:
  """Compares the results in two folders, file by file and number by number."""
  first, second = _contents(before), _contents(after)
  differences = [
    f"{name}: only {'before' if name in first else 'after'}"
    for name in sorted(first.keys() ^ second.keys())
  ]
  numbers, settings = 0, []
  for name in sorted(first.keys() & second.keys()):
    one, other = first[name], second[name]
    numbers += len(one) if name.endswith((".json", ".csv")) else 0
    for place in dict.fromkeys([*one, *other]):
      if place not in one or place not in other or repr(one[place]) != repr(other[place]):
        found = settings if _SETTINGS.search(place) else differences
        found.append(f"{name} {place}: {_shown(one, place)}, {_shown(other, place)}")
  return Compared(len(first), numbers, differences, settings)


def same(
  checkouts: Sequence[Path], names: Sequence[str], folder: Path, *, settings_may_differ: bool
) -> bool:
  """Runs programs in two checkouts, prints a table and what differs; whether nothing does."""
  print(
    "| program | files | numbers | differences | settings | seconds before, after |", flush=True
  )
  print("|---|---|---|---|---|---|", flush=True)
  found: list[str] = []
  settings: list[str] = []
  for name in names:
    made, seconds = [], []
    for label, checkout in zip(("before", "after"), checkouts, strict=True):
      started = time.monotonic()
      place = folder / label
      made.append(execute(RUNS[name], checkout, place / name, place / "cache"))
      seconds.append(f"{time.monotonic() - started:.0f}")
    compared = compare(made[0].folder, made[1].folder)
    wrong = [f"{one.folder}: exit code {one.code}: {one.said}" for one in made if one.code]
    wrong += compared.differences
    if not compared.files:
      wrong.append("nothing was made that could be compared")
    counts = f"{compared.files} | {compared.numbers} | {len(wrong)} | {len(compared.settings)}"
    print(f"| {name} | {counts} | {', '.join(seconds)} |", flush=True)
    found += [f"{name}: {one}" for one in wrong]
    settings += [f"{name}: setting {one}" for one in compared.settings]
  for lines in (found, settings):
    for one in lines[:_SHOWN]:
      print(one)
    if len(lines) > _SHOWN:
      print(f"... and {len(lines) - _SHOWN} more")
  return not found and (settings_may_differ or not settings)


def main(words: Sequence[str] | None = None) -> int:
  """Compares the checkouts of a command line; its exit code."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("checkouts", nargs="*", type=Path, metavar="CHECKOUT")
  parser.add_argument("--only", help="programs by name, separated by commas; default: all")
  parser.add_argument("--list", action="store_true", help="print the programs, run nothing")
  parser.add_argument("--keep", type=Path, help="a new folder for what is made; default: none")
  parser.add_argument(
    "--settings_may_differ", action="store_true", help="list differing settings, but let them pass"
  )
  given = parser.parse_args(words)
  names = given.only.split(",") if given.only else [*RUNS]
  if unknown := [name for name in names if name not in RUNS]:
    parser.error(f"no program {unknown[0]}; known: {', '.join(RUNS)}")
  if given.list:
    for name in names:
      print(f"{name}: {' '.join(command(RUNS[name], Path('CHECKOUT')))}")
    return 0
  if len(given.checkouts) != 2:
    parser.error("two checkouts are needed, before and after")
  checkouts = [checkout.resolve() for checkout in given.checkouts]
  for checkout in checkouts:
    if not (checkout / "experiments").is_dir():
      parser.error(f"{checkout} is no checkout: it has no folder experiments")
  with contextlib.ExitStack() as stack:
    if given.keep is None:
      folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="udp-same-")))
    else:
      given.keep.mkdir(parents=True)
      folder = given.keep.resolve()
    may_differ = given.settings_may_differ
    return 0 if same(checkouts, names, folder, settings_may_differ=may_differ) else 1


if __name__ == "__main__":
  sys.exit(main())
