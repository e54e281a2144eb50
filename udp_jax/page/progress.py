"""Reads a run's progress from what it says on stderr, and from the files that it has written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from udp_jax.page.jobs import Job

_CLEAN, _WRITTEN = "clean reference", "written"
# "protect eudp 2/3:  30%|###  | 6/20 [00:03<00:07,  2.00round/s, loss=0.1]"
_BAR = re.compile(r"([^\r\n|]+?):\s+\d+%\|[^|\r\n]*\|\s+(\d+)/(\d+) \[([\d:]+)<([\d:?]+),\s*\S*")
_GROUP = re.compile(r" (\d+)/(\d+)$")


class Progress(NamedTuple):
  """How far a run is.

  Attributes:
    words: what it does now.
    fraction: how much of that is done, in [0, 1]; None before anything is known.
    left: time left for that, "12:34" in minutes and seconds (or hours before them); "" unknown.
  """

  words: str
  fraction: float | None = None
  left: str = ""


def parse(text: str) -> Progress:
  """Returns the progress that the last bar of a log tells.

  >>> parse("protect eudp:  30%|###       | 6/20 [00:03<00:07,  2.00round/s]")
  Progress(words='Computing the change, round 6 of 20', fraction=0.3, left='00:07')
  """
  bars = _BAR.findall(text)
  if not bars:
    return Progress("Starting: the model is read and compiled, which takes about a minute")
  label, done, total, _, left = bars[-1]
  count, whole = int(done), max(1, int(total))
  label = label.strip()
  left = "" if "?" in left else left
  if label == _CLEAN:
    return Progress(f"Reading the pictures, {count} of {whole}", count / whole, left)
  if label == _WRITTEN:
    return Progress(f"Writing the files, {count} of {whole}", count / whole, left)
  if label.startswith("purify") or not label.startswith("protect"):
    return Progress(f"Cleaning, {count} of {whole}", count / whole, left)
  group = _GROUP.search(label)
  if group is None:
    return Progress(f"Computing the change, round {count} of {whole}", count / whole, left)
  number, groups = int(group[1]), int(group[2])
  words = f"Computing the change, round {count} of {whole}, group {number} of {groups}"
  return Progress(words, (number - 1 + count / whole) / groups)


def of_job(job: Job) -> Progress:
  """Returns the progress of a running job."""
  return parse(job.tail())


def per_picture(job: Job, names: Sequence[str], progress: Progress | None) -> list[str]:
  """Returns for every picture "done", or what happens with it; `progress`: None if nothing does.

  Files are written whole, so that a file that is there is done.
  """
  busy = progress is not None and progress.words.startswith("Computing")
  others = "being worked on" if busy else "waiting" if progress else "not done"
  return ["done" if (job.output / f"{name}.png").exists() else others for name in names]
