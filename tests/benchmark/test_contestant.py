"""Our contestant on a round that is a stand-in: what it times, counts and guards against."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.benchmark import contestant, flops, problem


class Update:
  """In place of a compiled round: sleeps, and answers with these losses."""

  def __init__(self, loss: float = 1.0, train_loss: float = 1.0):
    self.phases: list[int] = []
    self._info = SimpleNamespace(loss=jnp.full(3, loss), train_loss=jnp.full(2, train_loss))

  def __call__(self, key: Any, state: int, data: Any, params: Any, phase: Any) -> Any:
    self.phases.append(int(phase))
    time.sleep(0.02)
    return state + 1, self._info

  def as_text(self) -> str:
    return "a program"

  def memory_analysis(self) -> Any:
    return SimpleNamespace(temp_size_in_bytes=3 * 2**20)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch):
  """`prepared(update, parts, works, **spec)`: (contestant, what it said)."""

  def prepare(update: Update, parts: tuple[int, ...], works: list[str], **spec: Any):
    made = problem.Problem(None, None, "key", "data", "params", 0, None)  # type: ignore[arg-type]
    monkeypatch.setattr(problem, "build", lambda spec: made)
    monkeypatch.setattr(problem, "compile_round", lambda given: update)
    monkeypatch.setattr(flops, "count", lambda text: flops.Cost(6_000_000_000_000, parts))
    found = contestant.Contestant()
    return found, found.prepare(works, unet={}, performance={}, batch=8, **spec)

  return prepare


def test_every_work_is_run_once_before_it_is_timed(prepared) -> None:
  update = Update()
  found, said = prepared(update, (4_000_000_000_000, 2_000_000_000_000), ["min", "max", "round"])
  assert update.phases == [problem.PHASES[work] for work in ("min", "max", "round")]
  assert said["tflop"] == {"round": 6.0, "joint": 6.0, "min": 4.0, "max": 2.0}
  assert said["warmup_s"] >= 0.06 and found.scratch_mib() == 3.0
  assert found.memory("max")["peak_rss_mib"] > 0 and update.phases[-1] == problem.PHASES["max"]


def test_a_round_of_several_steps_counts_as_many(prepared) -> None:
  found, said = prepared(Update(), (), ["round"], train_steps=10)
  assert said["tflop"] == {"round": 0.6, "joint": 0.6, "min": None, "max": None}
  assert 0.002 <= found.run("round")["seconds"] < 0.02


def test_a_program_of_one_phase_has_its_costs(prepared) -> None:
  _, said = prepared(Update(), (), ["max"], train_steps=2, phase="max")
  assert said["tflop"] == {"max": 3.0}


@pytest.mark.parametrize("error", [KeyError, NotImplementedError, TypeError, ValueError])
def test_a_program_that_cannot_be_read_is_raced(
  prepared, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
  update = Update()
  monkeypatch.setattr(update, "as_text", lambda: (_ for _ in ()).throw(error()))
  found, said = prepared(update, (), ["max"])
  assert said["tflop"] == {} and found.run("max")["seconds"] > 0


@pytest.mark.parametrize(("saved", "cached"), [((), False), ((0.001,), False), ((9.0, 1.0), True)])
def test_a_program_from_the_cache_says_so(
  prepared, monkeypatch: pytest.MonkeyPatch, saved: tuple[float, ...], cached: bool
) -> None:
  update = Update()
  prepared(update, (), ["max"])

  def compile_round(given: Any) -> Any:
    jax.monitoring.record_event_duration_secs(contestant._COMPILED, 0.01)
    for seconds in saved:
      jax.monitoring.record_event_duration_secs(contestant._SAVED, seconds)
    return update

  monkeypatch.setattr(problem, "compile_round", compile_round)
  said = contestant.Contestant().prepare(["max"], unet={}, performance={}, batch=8)
  assert said["cached"] is cached


def test_only_the_compilation_is_listened_to() -> None:
  with contestant._durations() as found:
    jax.monitoring.record_event_duration_secs("/one", 2.0)
  jax.monitoring.record_event_duration_secs("/one", 3.0)
  assert found["/one"] == [2.0]


def test_memory_of_a_device_is_the_programs_own() -> None:
  sizes = {"argument": 30, "output": 20, "temp": 50, "alias": 10}
  analysis = {f"{name}_size_in_bytes": mib * 2**20 for name, mib in sizes.items()}
  program = SimpleNamespace(memory_analysis=lambda: SimpleNamespace(**analysis))
  device = SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 300 * 2**20})
  found = contestant.device_memory(program, device)
  assert found == {"device_mib": 90.0, "process_mib": 300.0}
  program.memory_analysis = lambda: None
  assert contestant.device_memory(program, device) == {"process_mib": 300.0}
  # A CPU has no memory of its own.
  assert contestant.device_memory(program, SimpleNamespace(memory_stats=lambda: None)) == {}


@pytest.mark.parametrize(
  ("loss", "train_loss", "wrong"),
  [(np.nan, 1.0, {"max", "round"}), (1.0, np.inf, {"min", "round", "joint"})],
)
def test_a_race_of_nans_is_none(prepared, loss: float, train_loss: float, wrong: set) -> None:
  for work in problem.PHASES:
    if work in wrong:
      with pytest.raises(FloatingPointError, match=f"the loss of {work} is not finite"):
        prepared(Update(loss, train_loss), (), [work])
    else:
      prepared(Update(loss, train_loss), (), [work])
