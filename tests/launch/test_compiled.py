"""What a compiler says of a program, and the table of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from launch import chips, compiled

TARGET = chips.Target("v5e:2x2", "tpu", [None] * 4, 4, 100e12, 16)


def test_memory_counts_a_donated_array_once():
  stats = SimpleNamespace(
    argument_size_in_bytes=5 * 2**30,
    output_size_in_bytes=4 * 2**30,
    alias_size_in_bytes=3 * 2**30,
    temp_size_in_bytes=2**30,
    generated_code_size_in_bytes=2**29,
  )
  assert compiled.memory_gib(stats) == {
    "arguments": 5.0,
    "outputs": 4.0,
    "donated": 3.0,
    "temporaries": 1.0,
    "code": 0.5,
    "peak": 7.5,
  }


@pytest.mark.parametrize(
  ("message", "expected"),
  [
    (
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
      "(71.50G) exceeds available HBM (15.75G).",
      (71.5, 15.75),
    ),
    (
      "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 16128.00M of 15.75G hbm. "
      "Exceeded hbm capacity by 1.",
      (15.75, 15.75),
    ),
    ("INTERNAL: Mosaic failed", None),
  ],
)
def test_out_of_memory(message, expected):
  assert compiled.out_of_memory(message) == expected


def test_costs_and_their_sums():
  analysis = {"flops": 50e12, "bytes accessed": 2e9, "optimal_seconds": 1.0}
  one = compiled.costs(analysis, TARGET, images=400)
  assert one == {
    "tflop": 50.0,
    "gigabytes": 2.0,
    "seconds": 1.0,
    "seconds_per_image": 1 / 400,
    "mfu": 0.5,
  }
  other = compiled.costs({**analysis, "optimal_seconds": 0.5}, TARGET, images=400)
  assert other["mfu"] == 1.0
  both = compiled.combine({"min": one, "max": other}, {"min": 2, "max": 4}, TARGET, images=1000)
  assert both["tflop"] == 300 and both["gigabytes"] == 12 and both["seconds"] == 4
  assert both["mfu"] == 0.75 and both["seconds_per_image"] == 0.004


def test_what_the_compiler_does_not_know_stays_unknown():
  """A negative time, which the TPU compiler gives at times, is none; so is a GPU's."""
  analysis = {"flops": 1e12, "bytes accessed": 1e9, "optimal_seconds": -3.0}
  unknown = compiled.costs(analysis, TARGET, images=1)
  assert unknown["tflop"] == 1 and unknown["seconds"] is None and unknown["mfu"] is None
  known = compiled.costs({**analysis, "optimal_seconds": 1.0}, TARGET, images=1)
  total = compiled.combine({"a": known, "b": unknown}, {"a": 1, "b": 1}, TARGET, images=1)
  assert total["tflop"] == 2 and total["seconds"] is None and total["mfu"] is None
  gpu = TARGET._replace(platform="cuda")
  assert compiled.costs({"optimal_seconds": 1.0}, gpu, images=1)["seconds"] is None


class _Lowered:
  """Stands for a lowered program that the compiler rejects."""

  def __init__(self, message: str):
    self.message = message

  def compile(self, compiler_options):
    assert compiler_options == {"exec_time_optimization_effort": -1.0}
    raise RuntimeError(self.message)


def test_a_program_that_does_not_compile():
  message = "RESOURCE_EXHAUSTED: Used 20.5G of 15.75G hbm"
  found = compiled.compile_program(lambda: _Lowered(message), TARGET, 8, effort=-1.0, steps=3)
  assert found["fits"] is False and found["error"] == "wants 20.50 GiB of 15.75"
  assert found["memory_gib"]["peak"] == 20.5 and found["steps"] == 3 and found["mfu"] is None
  found = compiled.compile_program(
    lambda: _Lowered("INTERNAL: scoped vmem\nmore"), TARGET, 8, effort=-1.0, steps=3
  )
  assert found["fits"] is None and found["error"] == "INTERNAL: scoped vmem"


def _row(topology: str, batch: int, mfu: float | None, fits: bool | None = True) -> dict:
  program = {
    "fits": fits,
    "error": None,
    "compile_seconds": 9.6,
    "steps": 1,
    "memory_gib": {"peak": 20.0},
    "collectives": {"all-reduce": {"in_program": 2, "executed": 9, "bytes": 8, "dtypes": ["f32"]}},
    "loops": [],
    "tflop": 3.0,
    "gigabytes": 15.0,
    "seconds": mfu and 0.025,
    "seconds_per_image": mfu and 1e-6,
    "mfu": mfu,
  }
  return {
    "topology": topology,
    "chips": 16,
    "per_device_batch_size": batch,
    "hbm_gib": 16,
    "fits": fits,
    "best": False,
    "programs": {"max": program},
    "one_to_one": None,
  }


def test_the_best_batch_of_each_topology():
  rows = [_row("a", 1, 0.5), _row("a", 2, 0.6), _row("a", 3, 0.9, False), _row("b", 1, None)]
  compiled.mark_best(rows)
  assert [row["best"] for row in rows] == [False, True, False, False]
  compiled.mark_best(rows[:1])
  assert rows[0]["best"]


def test_table():
  rows = [_row("v5e:4x4", 128, 0.62), _row("v5e:4x4", 999, None, False)]
  compiled.mark_best(rows)
  header, first, second = compiled.format_table(rows).splitlines()
  assert header.split()[:4] == ["topology", "chips", "batch/dev", "program"]
  assert first.split()[:7] == ["v5e:4x4", "16", "128*", "max", "yes", "20.00", "-4.00"]
  assert first.split()[7:] == "3.000 15.00 0.02500 1.000 62.0 10 2 all-reduce (f32)".split()
  assert second.split()[3:5] == ["max", "NO"] and second.split()[9:12] == ["-", "-", "-"]
