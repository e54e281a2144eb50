"""What a worker measures of itself: memory, rates, and who answers for which work."""

from __future__ import annotations

import os
import sys
import time

import pytest

from udp_jax.benchmark import serve


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM and clear_refs are Linux's")
def test_peak_memory_is_that_of_the_step_alone() -> None:
  block = bytearray(os.urandom(1)) * (200 * 2**20)
  assert serve.peak_rss_mib() > 200
  del block
  small = serve.measured(lambda: None)
  large = serve.measured(lambda: bytearray(b"x") * (100 * 2**20) and None)
  if small["peak_of"] == "process":
    pytest.skip("this system does not let a process forget its peak")
  assert 90 < large["peak_rss_mib"] - small["peak_rss_mib"] < 130


def test_matmul_rate_is_the_best_of_its_runs() -> None:
  times = iter([0.0, 0.03, 0.01, 0.02])
  rate = serve.matmul_gflops(lambda: time.sleep(next(times)), 100, repeats=3)
  assert 2 * 100**3 / 0.02 / 1e9 < rate <= 2 * 100**3 / 0.01 / 1e9


def test_a_call_of_several_products_counts_as_many() -> None:
  rate = serve.matmul_gflops(lambda: time.sleep(0.01), 100, repeats=2, products=5)
  assert 5 * 2 * 100**3 / 0.02 / 1e9 < rate <= 5 * 2 * 100**3 / 0.01 / 1e9


def test_a_copy_counts_what_it_moves() -> None:
  rate = serve.copy_gbs(lambda: time.sleep(0.01), 4_000_000, repeats=2)
  assert 4e6 / 0.02 / 1e9 < rate <= 4e6 / 0.01 / 1e9


def test_the_seat_goes_to_who_does_the_work() -> None:
  class Player:
    def __init__(self, name: str):
      self._name = name

    def prepare(self, works, **spec):
      return {"name": self._name, "works": works, **spec}

    def run(self, work):
      return {"by": self._name, "work": work}

    memory = run

  handlers = serve.racing({"impress": lambda: Player("special")}, lambda: Player("usual"))
  assert handlers["prepare"](["min", "max"], batch=2)["name"] == "usual"
  assert handlers["run"]("max") == {"by": "usual", "work": "max"}
  assert handlers["prepare"](["impress"])["name"] == "special"
  assert handlers["memory"]("impress")["by"] == "special"
