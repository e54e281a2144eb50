"""What a compiler says of a program, and the table of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from launch import chips, compiled
from udp_jax.benchmark import roofline
from udp_jax.benchmark.roofline import Reach
from udp_jax.ops.attention import Gpu

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
  assert {name: value for name, value in one.items() if value is not None} == {
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
  """A negative time, which the TPU compiler gives at times, is none."""
  analysis = {"flops": 1e12, "bytes accessed": 1e9, "optimal_seconds": -3.0}
  unknown = compiled.costs(analysis, TARGET, images=1)
  assert unknown["tflop"] == 1 and unknown["seconds"] is None and unknown["mfu"] is None
  known = compiled.costs({**analysis, "optimal_seconds": 1.0}, TARGET, images=1)
  total = compiled.combine({"a": known, "b": unknown}, {"a": 1, "b": 1}, TARGET, images=1)
  assert total["tflop"] == 2 and total["seconds"] is None and total["mfu"] is None
  assert set(compiled.costs(None, TARGET, images=1).values()) == {None}


GPU = chips.Target(
  "h100:2", "cuda", [None] * 2, 2, 100e12, 60.0, Gpu((9, 0), 91500), Reach(80e12, 1e12, 1e-6)
)


def test_the_bound_of_a_program_for_a_gpu():
  """A program of four steps: each has a fourth of all."""
  parts = {"products": 1.0, "bytes": 0.5, "launches": 0.5}
  found = compiled.bound(roofline.Bound(400, 40.0, 8.0, 2.0, parts), GPU, images=16, repeats=4)
  assert {name: value for name, value in found.items() if value is not None} == {
    "tflop": 10.0,
    "gigabytes": 2.0,
    "kernels": 100,
    "bound_seconds": 0.5,
    "bound_products": 0.25,
    "bound_bytes": 0.125,
    "bound_launches": 0.125,
    "bound_mfu": 0.2,
  }
  both = compiled.combine({"min": found, "max": found}, {"min": 1, "max": 2}, GPU, images=16)
  assert (both["kernels"], both["bound_seconds"], both["bound_bytes"]) == (300, 1.5, 0.375)
  assert both["bound_mfu"] == pytest.approx(0.2) and both["seconds"] is None
  unknown = GPU._replace(peak_flops=None)
  found = compiled.bound(roofline.Bound(4, 4.0, 8.0, 2.0, parts), unknown, images=16, repeats=1)
  assert found["bound_mfu"] is None and found["bound_seconds"] == 2.0


class _Lowered:
  """Stands for a lowered program that the compiler rejects under some options."""

  def __init__(self, *answers: Any):
    self.answers = list(answers)
    self.asked: list[dict[str, Any]] = []

  def compile(self, compiler_options):
    self.asked.append(compiler_options)
    answer = self.answers.pop(0)
    if isinstance(answer, str):
      raise RuntimeError(answer)
    return answer


def _compiled(lowered: _Lowered, target: chips.Target, **options: int) -> dict[str, Any]:
  return compiled.compile_program(lambda: lowered, target, 8, effort=-1.0, steps=3, **options)


def test_a_program_that_does_not_compile():
  lowered = _Lowered("RESOURCE_EXHAUSTED: Used 20.5G of 15.75G hbm")
  found = _compiled(lowered, TARGET)
  assert lowered.asked == [{"exec_time_optimization_effort": -1.0}]
  assert found["fits"] is False and found["error"] == "wants 20.50 GiB of 15.75"
  assert found["memory_gib"]["peak"] == 20.5 and found["steps"] == 3 and found["mfu"] is None
  found = _compiled(_Lowered("INTERNAL: scoped vmem\nmore"), TARGET)
  assert found["fits"] is None and found["error"] == "INTERNAL: scoped vmem"


PROGRAM = """\
%body (p: (s32[], f32[64,64])) -> (s32[], f32[64,64]) {
  %p = (s32[], f32[64,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[64,64]{1,0} get-tuple-element(%p), index=1
  %y = f32[64,64]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %z = f32[64,64]{1,0} copy(%y)
  ROOT %t = (s32[], f32[64,64]{1,0}) tuple(%i, %z)
}

ENTRY %main (p.1: (s32[], f32[64,64])) -> (s32[], f32[64,64]) {
  %p.1 = (s32[], f32[64,64]{1,0}) parameter(0)
  ROOT %while = (s32[], f32[64,64]{1,0}) while(%p.1), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
"""  # noqa: E501
MEMORY = SimpleNamespace(
  argument_size_in_bytes=2**30,
  output_size_in_bytes=0,
  alias_size_in_bytes=0,
  temp_size_in_bytes=2**30,
  generated_code_size_in_bytes=0,
)


def _done() -> SimpleNamespace:
  return SimpleNamespace(as_text=lambda: PROGRAM, memory_analysis=lambda: MEMORY)


def test_a_program_for_a_gpu_is_counted():
  """Five steps: a product and a copy in each. XLA's own analysis is not asked."""
  found = _compiled(_Lowered(_done()), GPU, repeats=5, top=1)
  assert found["kernels"] == 2 and found["tflop"] == pytest.approx(2 * 64**3 / 1e12)
  assert found["gigabytes"] == pytest.approx(4 * 4 * 64 * 64 / 1e9)
  assert found["bound_launches"] == pytest.approx(2e-6) and found["seconds"] is None
  assert found["memory_gib"]["peak"] == 2 and found["fits"]
  (largest,) = found["largest"]
  assert largest["runs"] == 5 and largest["name"] in ("y", "z")
  small = _compiled(_Lowered(_done()), GPU._replace(hbm_gib=1.5), repeats=5)
  assert small["fits"] is False and small["error"] == "more than 1.5 GiB" and not small["largest"]


@pytest.mark.parametrize(
  ("answers", "triton"),
  [
    ([None], [None]),
    (["INTERNAL: Couldn't find output tile sizes for x", None], [None, False]),
    (["INTERNAL: Couldn't find output tile sizes for x", "other"], [None, False]),
    (["INTERNAL: other"], [None]),
  ],
)
def test_products_without_tiles_are_left_to_cublas(answers, triton):
  """Other failures stay failures, and the row says which options were used."""
  lowered = _Lowered(*(answer or _done() for answer in answers))
  found = _compiled(lowered, GPU)
  assert [one.get("xla_gpu_enable_triton_gemm") for one in lowered.asked] == triton
  assert all(one["xla_gpu_autotune_level"] == 0 for one in lowered.asked)
  assert found["options"] == (None if answers[-1] else lowered.asked[-1])
  assert found["fits"] is (None if answers[-1] else True)


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
    "kernels": None,
    "bound_seconds": None,
    "bound_mfu": None,
    "largest": [],
    "options": None,
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
  assert first.split()[7:] == "3.000 15.00 0.02500 1.000 62.0 - - - 10 2 all-reduce (f32)".split()
  assert second.split()[3:5] == ["max", "NO"] and second.split()[9:12] == ["-", "-", "-"]
  assert compiled.format_largest(rows) == compiled.format_notes(rows) == ""


def test_table_of_gpus():
  """The best batch is that of the highest bound, and the largest kernels are listed below."""
  rows = [_row("h100", 128, None), _row("h100", 256, None)]
  for row, share in zip(rows, (0.25, 0.28), strict=True):
    found = row["programs"]["max"]
    found |= {"kernels": 612.0, "bound_seconds": 0.0125, "bound_mfu": share}
  kernel = roofline.Kernel("dot.1", "__cublas$gemm", 69e9, 1.5e6, 1e-4, "jit(f)/dot_general", 352)
  rows[0]["programs"]["max"]["largest"] = [kernel._asdict()]
  compiled.mark_best(rows)
  assert [row["best"] for row in rows] == [False, True]
  first = compiled.format_table(rows).splitlines()[1]
  assert first.split()[7:14] == ["3.000", "15.00", "-", "-", "-", "612", "12.50"]
  assert first.split()[14] == "25.0"
  rows[1]["programs"]["max"]["options"] = {"xla_gpu_enable_triton_gemm": False}
  (note,) = compiled.format_notes(rows).splitlines()
  assert note.startswith("h100, batch 256, max: without Triton's products")
  title, line = compiled.format_largest(rows).splitlines()
  assert title == "h100, max:"
  assert line.split() == "352 x 100.0 us 69.0 GFLOP 1.5 MB __cublas$gemm jit(f)/dot_general".split()
