"""The line that `udp_jax.benchmark.cpu_time` prints, with a contestant that only burns time."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pytest

from udp_jax.benchmark import contestant, cpu_time


class Burning:
  """Every run takes 30 ms of the processor's time, the second one three times as much."""

  asked: dict[str, Any]
  runs = 0

  def prepare(self, works: list[str], **spec: Any) -> dict[str, Any]:
    Burning.asked = {"works": works, **spec}
    return {"compile_s": 1.26, "tflop": {works[0]: 0.5}}

  def run(self, work: str) -> None:
    Burning.runs += 1
    deadline = time.process_time() + (0.09 if Burning.runs == 2 else 0.03)
    while time.process_time() < deadline:
      pass

  def scratch_mib(self) -> float:
    return 3.4

  def memory(self, work: str) -> dict[str, float]:
    return {"peak_rss_mib": 70.2}


def test_the_median_of_the_runs_by_step(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
  monkeypatch.setattr(contestant, "Contestant", Burning)
  words = "--work=joint --batch=4 --steps=3 --small --core=-1".split()
  monkeypatch.setattr(sys, "argv", ["cpu_time", *words])
  cpu_time.main()
  found = json.loads(capsys.readouterr().out)
  assert Burning.asked["works"] == ["joint"] and Burning.asked["joint"]
  assert Burning.asked["train_steps"] == Burning.asked["perturb_steps"] == 3
  assert Burning.asked["unet"]["block_out_channels"] == (32,) * 4
  first, second, third = found["cpu_s"]
  assert 0.009 < first < 0.02 and 0.009 < third < 0.02 and second >= 0.029
  assert found["median_cpu_s"] == sorted(found["cpu_s"])[1] < second
  assert (found["compile_s"], found["tflop"]) == (1.3, 0.5)
  assert (found["scratch_mib"], found["peak_rss_mib"]) == (3, 70)
