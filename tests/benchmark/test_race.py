"""Order, statistics and ratios of a race."""

from __future__ import annotations

import numpy as np
import pytest

from udp_jax.benchmark import race
from udp_jax.benchmark.worker import WorkerError


def _recorder(log: list[str], name: str):
  return lambda: log.append(name) or {"seconds": 1.0}


def test_runs_take_turns_and_the_first_changes() -> None:
  log: list[str] = []
  runs = {name: _recorder(log, name) for name in "abc"}
  result = race.interleave(runs, min_cycles=3, max_cycles=3, seconds=0.0)
  assert "".join(log) == "abc" + "bca" + "cab"
  assert {name: len(answers) for name, answers in result.answers.items()} == dict.fromkeys("abc", 3)


@pytest.mark.parametrize(("seconds", "cycles"), [(0.0, 2), (5.0, 5), (1000.0, 8)])
def test_time_decides_between_the_least_and_the_most_cycles(seconds: float, cycles: int) -> None:
  now = iter(range(1000))
  log: list[str] = []
  race.interleave(
    {"a": _recorder(log, "a")},
    min_cycles=2,
    max_cycles=8,
    seconds=seconds,
    # Read at the start, and before each cycle after the second.
    clock=lambda: float(next(now) if len(log) < 2 else len(log)),
  )
  assert len(log) == cycles


def test_who_fails_drops_out_and_the_others_go_on(stand_in) -> None:
  good, bad = stand_in([0.1]), stand_in()
  result = race.interleave(
    {
      "good": lambda: good.ask("run", work="min"),
      "bad": lambda: bad.ask("die", code=3),
    },
    min_cycles=3,
    max_cycles=3,
    seconds=0.0,
  )
  assert [a["seconds"] for a in result.answers["good"]] == [0.1] * 3
  assert result.answers["bad"] == []
  assert "ended with 3" in result.errors["bad"]


def test_a_bug_is_not_hidden() -> None:
  def bug():
    raise KeyError("seconds")

  with pytest.raises(KeyError):
    race.interleave({"a": bug}, min_cycles=1, max_cycles=1, seconds=0.0)
  with pytest.raises(RuntimeError):
    race.interleave(
      {"a": lambda: (_ for _ in ()).throw(RuntimeError())}, min_cycles=1, max_cycles=1, seconds=0.0
    )
  assert issubclass(WorkerError, Exception) and not issubclass(WorkerError, RuntimeError)


def test_spread_is_median_and_percentiles() -> None:
  values = list(np.random.default_rng(0).permutation(101) / 100)
  found = race.spread(values)
  assert found == pytest.approx({"median_s": 0.5, "p10_s": 0.1, "p90_s": 0.9})
  assert race.spread([3.0]) == {"median_s": 3.0, "p10_s": 3.0, "p90_s": 3.0}
  # One disturbed run of many moves the median by nothing.
  assert race.spread([1.0, 1.0, 1.0, 1.0, 60.0])["median_s"] == 1.0


def _row(framework: str, variant: str, median: float | None, memory: float = 100.0):
  return {
    "framework": framework,
    "variant": variant,
    "median_s": median,
    "peak_rss_mib": memory,
  }


def test_ratios_are_over_the_fastest_peer() -> None:
  rows = [
    _row("jax", "one_step", 3.0, 120.0),
    _row("torch", "as_written", 6.0, 80.0),
    _row("torch", "channels_last", 4.0, 60.0),
    _row("torch", "compile", None),
  ]
  race.add_ratios(rows)
  ours, written, best, failed = rows
  assert (ours["ratio"], ours["ratio_as_written"], ours["ratio_memory"]) == (0.75, 0.5, 2.0)
  assert ours["best_peer"] == "torch channels_last"
  assert (best["ratio"], written["ratio"]) == (1.0, 1.5)
  assert failed["ratio"] is None
  assert ours["ratio_separate"] is None


def test_memory_is_compared_where_it_is_scarce() -> None:
  rows = [_row("jax", "one_step", 3.0, 120.0), _row("torch", "channels_last", 4.0, 60.0)]
  rows[0]["device_mib"], rows[1]["device_mib"] = 300.0, 400.0
  race.add_ratios(rows)
  assert [row["ratio_memory"] for row in rows] == [0.75, 1.0]
  del rows[1]["device_mib"]
  race.add_ratios(rows)
  assert rows[0]["ratio_memory"] is None


def test_mfu_is_by_one_count_for_all() -> None:
  rows = [
    _row("jax", "scan_12", 2.0) | {"tflop": 9.0},
    _row("torch", "as_written", 4.0) | {"tflop": 12.0},
    _row("torch", "channels_last", 3.0) | {"tflop": 6.0},
    _row("torch", "compile", None) | {"tflop": None},
  ]
  race.add_mfu(rows, 30_000.0)
  # 6 TFLOP in 2 s of 30 TFLOP/s.
  assert [row.get("mfu") for row in rows] == pytest.approx([10.0, 5.0, 100 / 15, None])
  assert [row.get("mfu_of") for row in rows] == ["torch"] * 3 + [None]
  # Without a peer that computes no more than it needs, each by its own.
  race.add_mfu(alone := rows[:2], 30_000.0)
  assert [(row["mfu"], row["mfu_of"]) for row in alone] == [(15.0, "jax"), (10.0, "torch")]


def test_joint_steps_are_compared_with_our_separate_ones() -> None:
  rows = [_row("jax", "joint", 1.5), _row("jax", "separate_steps", 3.0)]
  race.add_ratios(rows)
  assert rows[0]["ratio_separate"] == 0.5
  # No peer: no ratio, and none made up.
  assert all(row["ratio"] is row["best_peer"] is row["ratio_as_written"] is None for row in rows)
