"""Measurements without an opponent, of a round that is a stand-in."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from udp_jax.benchmark import flops, problem, sections


class Rounds:
  """Sleeps; the first of three runs longest. Its delta counts the rounds."""

  def __init__(self, **spec: Any):
    self.spec, self.compile_s, self.count = spec, 1.5, 1
    text = "a = f32[] all-reduce(b)\nc = f32[] add(a, a)\nd = all-gather-start(c)"
    self.update = SimpleNamespace(as_text=lambda: text)
    self.state = SimpleNamespace(delta=np.full(2, 1.0))

  def __call__(self) -> None:
    self.count += 1
    self.state.delta = np.full(2, float(self.count))
    time.sleep(0.05 if self.count == 2 else 0.01)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(sections, "_Rounds", Rounds)
  monkeypatch.setattr(flops, "count", lambda text: flops.Cost(3_000_000_000_000, ()))


def test_the_cost_is_the_median_of_rounds() -> None:
  found = sections.cost(repeats=3, batch=4)
  assert 0.01 <= found["round_s"] < 0.04
  assert (found["compile_s"], found["tflop"]) == (1.5, 3.0) and found["peak_rss_mib"] > 0


def test_the_delta_of_as_many_rounds_as_were_asked_for(tmp_path: Path) -> None:
  found = sections.scaling(str(tmp_path / "delta.npy"), num_rounds=4, repeats=1, batch=4)
  # The round that compiling runs counts too.
  np.testing.assert_array_equal(np.load(tmp_path / "delta.npy"), [4.0, 4.0])
  assert found["collectives"] == 2 and found["devices"] >= 1


def test_what_the_cache_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))

  def compile_it() -> None:
    time.sleep(0.03)
    (tmp_path / "entry").write_bytes(bytes(2**19))

  monkeypatch.setattr(problem, "build", lambda spec: spec)
  monkeypatch.setattr(problem, "lower_round", lambda made: SimpleNamespace(compile=compile_it))
  found = sections.compile_time(unet={}, performance={}, batch=4)
  assert found["cache_mib"] == 0.5 and found["compile_s"] >= 0.03 > found["trace_s"]
