"""Interleaved timing, A B C A B C: a slow minute of the machine affects every contestant."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from udp_jax.benchmark.worker import WorkerError

Run = Callable[[], dict[str, Any]]


class Result(NamedTuple):
  """The outcome of a race.

  Attributes:
    answers: for each contestant, one answer per cycle, in order.
    errors: for each contestant that dropped out, the reason; it then has no answers.
  """

  answers: dict[str, list[dict[str, Any]]]
  errors: dict[str, str]


def interleave(
  runs: Mapping[str, Run],
  *,
  min_cycles: int,
  max_cycles: int,
  seconds: float,
  pause: float = 0.0,
  clock: Callable[[], float] = time.monotonic,
) -> Result:
  """Runs every contestant once per cycle until the time is up.

  Each cycle starts with another contestant, so that none always follows the same one. In the end,
  all have the same number of answers.

  Args:
    runs: contestants by name.
    min_cycles: smallest number of cycles, regardless of the time.
    max_cycles: largest number of cycles.
    seconds: time after which no cycle begins, once there are `min_cycles`.
    pause: seconds before each run, in which the previous thread pool goes to sleep.
    clock: returns the time in seconds.
  """
  answers: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
  errors: dict[str, str] = {}
  started = clock()
  for cycle in range(max_cycles):
    names = [name for name in runs if name not in errors]
    if not names or (cycle >= min_cycles and clock() - started >= seconds):
      break
    turn = cycle % len(names)
    for name in names[turn:] + names[:turn]:
      time.sleep(pause)
      try:
        answers[name].append(runs[name]())
      except WorkerError as error:
        errors[name] = str(error)
  return Result({name: [] if name in errors else a for name, a in answers.items()}, errors)


def spread(seconds: Sequence[float]) -> dict[str, float]:
  """`median_s`, `p10_s` and `p90_s` (percentiles, interpolated) of at least one number."""
  p10, median, p90 = np.percentile(np.asarray(seconds, np.float64), [10, 50, 90])
  return {"median_s": float(median), "p10_s": float(p10), "p90_s": float(p90)}


def add_ratios(rows: list[dict[str, Any]]) -> None:
  """Adds to each row of a race its time relative to its peers; None if there is no such peer.

  `ratio` is relative to the fastest peer of the race (`best_peer` names it), `ratio_as_written` to
  the peer as it is commonly written, `ratio_separate` to our separate steps (in a race of joint
  steps); `ratio_memory` compares peak memory with the fastest peer's, of the device where that has
  its own. Below 1 is faster, or smaller, than the peer.
  """
  timed = [row for row in rows if row["median_s"] is not None]
  peers = [row for row in timed if row["framework"] != "jax"]
  best = min(peers, key=lambda row: row["median_s"], default=None)
  written = next((row for row in peers if row["variant"] == "as_written"), None)
  separate = next((row for row in timed if row["variant"] == "separate_steps"), None)
  for row in rows:
    row["best_peer"] = best and f"{best['framework']} {best['variant']}"
    row["ratio"] = _over(row, best, "median_s")
    row["ratio_as_written"] = _over(row, written, "median_s")
    row["ratio_separate"] = _over(row, separate, "median_s")
    memory = "device_mib" if row.get("device_mib") else "peak_rss_mib"
    row["ratio_memory"] = _over(row, best, memory)


def add_mfu(rows: list[dict[str, Any]], peak: float) -> None:
  """Adds `mfu`, the share of the peak rate in percent that the usual form's FLOPs would be.

  One count serves all rows of a race: PyTorch's of the eager network without unused gradients,
  whatever a contestant recomputes or saves. `mfu_of` says whose count it is: "jax" where no such
  peer took part.

  Args:
    rows: rows of one race.
    peak: best rate of a matrix product, GFLOP/s.
  """
  for row in rows:
    usual = next((r for r in rows if r["framework"] == "torch" and _counts(r)), row)
    if row["median_s"] and usual["tflop"]:
      row["mfu"] = 100 * 1e3 * usual["tflop"] / row["median_s"] / peak
      row["mfu_of"] = usual["framework"]


def _counts(row: dict[str, Any]) -> bool:
  # As it is commonly written, the max step computes gradients of weights that nobody uses.
  return bool(row["tflop"]) and row["variant"] != "as_written"


def _over(row: dict[str, Any], peer: dict[str, Any] | None, field: str) -> float | None:
  if peer is None or not row.get(field) or not peer.get(field):
    return None
  return row[field] / peer[field]
