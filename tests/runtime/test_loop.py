"""The host loop: going on after a stop, a divergence or nothing at all."""

from __future__ import annotations

import os
import signal
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.errors import DivergedError, Preempted
from udp_jax.runtime import loop
from udp_jax.runtime.metrics_log import read_metrics

TOTAL = 10


def start():
  return {"count": jnp.int32(0), "value": jnp.float32(1.0)}


def counter(events=None, stride=1):
  """A state that doubles and adds; `events[position]` is called before that position's call."""
  calls = []

  def advance(state, position):
    calls.append(position)
    (events or {}).get(position, lambda: None)()
    for _ in range(stride):
      state = {"count": state["count"] + 1, "value": (state["value"] * 1.5) % 7}
    return loop.Advance(state, position + stride, {"loss": float(state["value"])})

  return advance, calls


def run(folder, advance, every=3, keep=2, **options):
  work = loop.Work("counting", "step", TOTAL, progress=False, **options)
  return loop.run_in(folder, advance, start(), work, every=every, keep=keep)


def saved(folder) -> list[int]:
  """Positions of the checkpoints on disk."""
  return sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit())


def plain(records):
  return [(r["position"], r["loss"]) for r in records]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  folder = tmp_path_factory.mktemp("uninterrupted")
  state = run(folder, counter()[0])
  return state, plain(read_metrics(folder / "metrics.jsonl"))


def assert_same(folder, state, uninterrupted):
  expected, records = uninterrupted
  for name in expected:
    np.testing.assert_array_equal(state[name], expected[name])
  assert plain(read_metrics(folder / "metrics.jsonl")) == records


def test_a_run_to_the_end(uninterrupted):
  state, records = uninterrupted
  assert state["count"] == TOTAL
  assert [position for position, _ in records] == list(range(1, TOTAL + 1))


def test_a_finished_run_is_not_run_again(tmp_path, uninterrupted):
  run(tmp_path, counter()[0])
  advance, calls = counter()
  assert_same(tmp_path, run(tmp_path, advance), uninterrupted)
  assert calls == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_request_saves_and_a_rerun_ends_the_same(tmp_path, uninterrupted, number):
  before = signal.getsignal(number)
  advance, calls = counter({4: lambda: os.kill(os.getpid(), number)})
  message = "counting: stopped at step 5 of 10 and saved; run the same command"
  with pytest.raises(Preempted, match=message) as stop:
    run(tmp_path, advance)
  assert stop.value.signal == number
  assert calls == [0, 1, 2, 3, 4]
  assert 5 in saved(tmp_path)
  assert signal.getsignal(number) is before
  advance, calls = counter()
  assert_same(tmp_path, run(tmp_path, advance), uninterrupted)
  assert calls == [5, 6, 7, 8, 9]


def test_a_stop_request_in_the_last_call_is_not_forgotten(tmp_path, uninterrupted):
  advance, _ = counter({TOTAL - 1: lambda: os.kill(os.getpid(), signal.SIGTERM)})
  with pytest.raises(Preempted, match="stopped at step 10 of 10 and saved"):
    run(tmp_path, advance)
  advance, calls = counter()
  assert_same(tmp_path, run(tmp_path, advance), uninterrupted)
  assert calls == []


def test_a_second_stop_request_is_not_held_back(tmp_path):
  class Impatient(Exception):
    pass

  def give_up(number, frame):
    raise Impatient

  def twice():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)

  previous = signal.signal(signal.SIGTERM, give_up)
  try:
    with pytest.raises(Impatient):
      run(tmp_path, counter({4: twice})[0])
  finally:
    signal.signal(signal.SIGTERM, previous)


def test_a_stop_without_checkpoints_does_not_claim_to_have_saved():
  advance, _ = counter({4: lambda: os.kill(os.getpid(), signal.SIGTERM)})
  work = loop.Work("counting", "step", TOTAL, progress=False)
  with pytest.raises(Preempted, match="stopped at step 5 of 10$"):
    loop.run(advance, start(), work)


def test_a_crash_costs_one_interval(tmp_path, uninterrupted):
  def crash():
    raise RuntimeError("out of luck")

  with pytest.raises(RuntimeError, match="out of luck"):
    run(tmp_path, counter({8: crash})[0])
  advance, calls = counter()
  assert_same(tmp_path, run(tmp_path, advance), uninterrupted)
  assert calls == [6, 7, 8, 9]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_divergence_keeps_the_last_good_checkpoint(tmp_path, uninterrupted, bad):
  def diverging(state, position):
    done = counter()[0](state, position)
    return done._replace(metrics={"loss": bad}) if position == 6 else done

  with pytest.raises(DivergedError, match=f"counting: loss is {bad} at step 7 of 10; lower"):
    run(tmp_path, diverging)
  assert saved(tmp_path) == [3, 6]
  assert [r["position"] for r in read_metrics(tmp_path / "metrics.jsonl")][-1] == 6
  # With the cause out of the way it goes on from there.
  advance, calls = counter()
  assert_same(tmp_path, run(tmp_path, advance), uninterrupted)
  assert calls == [6, 7, 8, 9]


def test_only_the_named_metrics_must_be_finite(tmp_path):
  def advance(state, position):
    return counter()[0](state, position)._replace(metrics={"rate": float("nan"), "loss": 1.0})

  assert run(tmp_path, advance, must_be_finite=("loss", "absent"))["count"] == TOTAL
  assert read_metrics(tmp_path / "metrics.jsonl")[0]["rate"] is None


def test_strides_that_step_over_the_interval_still_save(tmp_path):
  run(tmp_path, counter(stride=5)[0], every=3, keep=5)
  assert saved(tmp_path) == [5, 10]


def test_keep_the_newest(tmp_path):
  run(tmp_path, counter()[0], every=2, keep=3)
  assert saved(tmp_path) == [6, 8, 10]


def test_outside_of_the_main_thread(tmp_path, uninterrupted):
  results = []
  thread = threading.Thread(target=lambda: results.append(run(tmp_path, counter()[0])))
  thread.start()
  thread.join()
  assert_same(tmp_path, results[0], uninterrupted)


@pytest.mark.parametrize(
  ("options", "said"),
  [
    ({}, "counting: about 15 minutes left on this machine"),
    ({"afterwards": 2.0}, "counting: about 48 minutes left on this machine"),
    ({"compiles": True}, "counting: about 27 minutes left on this machine"),
    ({"afterwards": -0.89}, ""),
  ],
)
def test_the_time_left_is_what_one_call_took(options, said, tmp_path, monkeypatch, caplog):
  """The first call takes 100 s, each later one 200 s."""
  clock = [0.0]
  advance, _ = counter(
    {n: lambda: clock.append(clock[-1] + 100 * (1 + (len(clock) > 1))) for n in range(TOTAL)}
  )
  monkeypatch.setattr(loop.time, "monotonic", lambda: clock[-1])
  with caplog.at_level("INFO", logger="udp_jax"):
    run(tmp_path, advance, **options)
  found = [one.getMessage() for one in caplog.records if "left on this" in one.getMessage()]
  assert found == ([said] if said else [])


def test_durations_are_for_people():
  assert [loop.duration(s) for s in (3, 89, 90, 2400, 5399, 9000)] == [
    "3 seconds", "89 seconds", "2 minutes", "40 minutes", "90 minutes", "2.5 hours",
  ]  # fmt: skip
