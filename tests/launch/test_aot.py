"""Ahead-of-time compilation: what is read from a program, and the production programs themselves.

The programs are compiled for eight CPU devices in a process of their own, and for a TPU slice where
libtpu is installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch import chips, compiled, hlo
from udp_jax.errors import ConfigError, MissingDataError

ROOT = Path(__file__).resolve().parents[2]
DEVICES = 8
TARGET = chips.Target("v5e:2x2", "tpu", [None] * 4, 4, 100e12, 16)

# What a program for TPUs looks like: layouts in the types, asynchronous pairs, limits of loops in
# their conditions, inside a fusion at times.
TPU_TEXT = """\
HloModule jit_f, is_scheduled=true

%add.clone (x.1: f32[], y.1: f32[]) -> f32[] {
  %x.1 = f32[] parameter(0)
  %y.1 = f32[] parameter(1)
  ROOT %add.5 = f32[]{:T(128)} add(%x.1, %y.1)
}

%compare_fusion (a: s32[], b: s32[]) -> pred[] {
  %a = s32[]{:T(128)} parameter(0)
  %b = s32[]{:T(128)} parameter(1)
  ROOT %lt.2 = pred[]{:T(512)} compare(%a, %b), direction=LT
}

%inner_condition (p.1: (s32[], f32[8])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %five = s32[]{:T(128)} constant(5)
  ROOT %fused = pred[]{:T(512)} fusion(%i.1, %five), kind=kLoop, calls=%compare_fusion
}

%inner_body (p.2: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.2 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %v.2 = f32[8]{0:T(128)} get-tuple-element(%p.2), index=1
  %all-reduce-start.1 = (bf16[4,8]{1,0:T(8,128)(2,1)}, f32[8]{0:T(128)}) all-reduce-start(%v.2, %v.2), replica_groups={{0,1}}, to_apply=%add.clone, metadata={op_name="jit(f)/psum (first)"}
  %all-reduce-done.1 = (bf16[4,8]{1,0:T(8,128)(2,1)}, f32[8]{0:T(128)}) all-reduce-done(%all-reduce-start.1)
  ROOT %t.2 = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%v.2, %v.2)
}

%outer_condition (p.3: (s32[], f32[8])) -> pred[] {
  %p.3 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %i.3 = s32[]{:T(128)} get-tuple-element(%p.3), index=0
  %three = s32[]{:T(128)} constant(3)
  ROOT %lt.3 = pred[]{:T(512)} compare(%i.3, %three), direction=LT
}

%outer_body (p.4: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.4 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  ROOT %while.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) while(%p.4), condition=%inner_condition, body=%inner_body
}

%unknown_condition (p.5: (s32[], s32[])) -> pred[] {
  %p.5 = (s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %i.5 = s32[]{:T(128)} get-tuple-element(%p.5), index=0
  %n.5 = s32[]{:T(128)} get-tuple-element(%p.5), index=1
  ROOT %lt.5 = pred[]{:T(512)} compare(%i.5, %n.5), direction=LT
}

%async_computation (p.6: f32[8]) -> f32[2] {
  %p.6 = f32[8]{0:T(128)} parameter(0)
  ROOT %rs = f32[2]{0:T(128)} reduce-scatter(%p.6), dimensions={0}, to_apply=%add.clone
}

%branch (p.7: f32[8]) -> f32[32] {
  %p.7 = f32[8]{0:T(128)} parameter(0)
  %all-gather-start = (f32[8]{0:T(128)}, f32[32]{0:T(128)}) all-gather-start(%p.7), dimensions={0}
  ROOT %all-gather-done = f32[32]{0:T(128)} all-gather-done(%all-gather-start)
}

ENTRY %main (p.8: f32[8]) -> f32[8] {
  %p.8 = f32[8]{0:T(128)} parameter(0)
  %w.8 = (s32[]{:T(128)}, /*index=1*/f32[8]{0:T(128)}) while(%p.8), condition=%outer_condition, body=%outer_body
  %u.8 = (s32[]{:T(128)}, s32[]{:T(128)}) while(%w.8), condition=%unknown_condition, body=%branch
  %async-start = ((f32[8]{0}), f32[2]{0}, u32[]) async-start(%p.8), calls=%async_computation
  %async-done = f32[2]{0:T(128)} async-done(%async-start), calls=%async_computation
  ROOT %c.8 = f32[32]{0:T(128)} conditional(%p.8, %p.8, %p.8), branch_computations={%branch, %async_computation}
}
"""  # noqa: E501


def test_loops_of_a_program():
  loops = hlo.loops(hlo.parse(TPU_TEXT))
  assert loops == [
    hlo.Loop("outer_body", 3, 3),
    hlo.Loop("inner_body", 5, 15),
    hlo.Loop("branch", None, 1),
  ]


def test_collectives_of_a_program():
  """A pair is one; loops multiply; branches, wrapped and fused computations are entered."""
  table = hlo.summary(hlo.collectives(hlo.parse(TPU_TEXT)))
  assert table == {
    "all-reduce": {
      "in_program": 1,
      "executed": 15,
      "bytes": 15 * (2 * 32 + 4 * 8),
      "dtypes": ["bf16", "f32"],
    },
    # In a loop of unknown length and in a branch, which is the same computation here.
    "all-gather": {"in_program": 1, "executed": 2, "bytes": 2 * 4 * 32, "dtypes": ["f32"]},
    "reduce-scatter": {"in_program": 1, "executed": 2, "bytes": 2 * 4 * 2, "dtypes": ["f32"]},
  }


def test_cycles_of_a_program():
  """Each computation once, and nothing of what is fused: its fusion has the estimate."""
  estimates = {"%v.2 =": 7, "%i.1 =": 1000, "%p.8 =": 20, "%a =": 300}
  lines = []
  for line in TPU_TEXT.splitlines():
    found = [number for name, number in estimates.items() if line.strip().startswith(name)]
    lines.append(line + "".join(f', backend_config={{"estimated_cycles":"{n}"}}' for n in found))
  assert hlo.cycles(hlo.parse("\n".join(lines))) == 27
  assert hlo.cycles(hlo.parse(TPU_TEXT)) is None


def test_text_without_a_program():
  with pytest.raises(ValueError, match="no program"):
    hlo.parse("HloModule nothing\n")


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


def test_chips_have_the_vendor_s_numbers():
  assert {name: (chip.peak_flops, chip.hbm_gib) for name, chip in chips.TPUS.items()} == {
    "v4": (275e12, 32),
    "v5e": (197e12, 16),
    "v5p": (459e12, 95),
    "v6e": (918e12, 32),
  }


@pytest.mark.parametrize("name", ["v5e", "v9:2x2", "v5e:4", "v5e:4x", "v5e-16", ""])
def test_topology_names(name):
  with pytest.raises(ConfigError, match="KIND:AxB"):
    chips.parse_tpu(name)


def test_a_compiler_that_is_not_installed(monkeypatch, tmp_path):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(MissingDataError, match=r'libtpu.*pip install "jax\[tpu\]"') as error:
    chips.tpu_target("v5e:4x4")
  assert error.value.exit_code == 2
  with pytest.raises(MissingDataError, match="pip install .*jax-cuda12-plugin"):
    chips.gpu_target("1x1x8", tmp_path / "h100.txtpb")
  with pytest.raises(ConfigError, match="1x1x8"):
    chips.gpu_target("8", tmp_path / "h100.txtpb")


# The production programs of a small config on eight CPU devices.
PROGRAM = """
import json
import jax
from experiments import _cli
from launch import chips, compiled, hlo, programs
from udp_jax.errors import ConfigError

jax.config.update("jax_enable_compilation_cache", False)
config = _cli.get_config("eudp", "demo:smoke")
mesh = programs.make_mesh(jax.devices(), config)
target = chips.Target("cpu", "cpu", jax.devices(), len(jax.devices()), None, None)
setting = programs.setting(config, "eudp", mesh, "cpu", 40, 16)
parts = programs.parts(setting)
found = {"parts": parts, "num_batches": setting.num_batches}
lowered = {part.name: programs.lower_part(setting, part) for part in parts}
lowered["round"] = programs.lower_round(setting)
for name, program in lowered.items():
  done = program.compile()
  text = hlo.parse(done.as_text())
  found[name] = {
    "collectives": [one._asdict() for one in hlo.collectives(text)],
    "loops": [loop._asdict() for loop in hlo.loops(text)],
    "donated": compiled.memory_gib(done.memory_analysis())["donated"],
  }
found["errors"] = []
for row, images, size in [
  ("eudp", 40, 12), ("eudp", 8, 16), ("random_noise", 40, 16), ("eudp_shuffled", 40, 16)
]:
  try:
    programs.setting(config, row, mesh, "cpu", images, size)
  except ConfigError as error:
    found["errors"].append(str(error))
steps = programs.setting(config, "advdm", mesh, "cpu", 40, 16)
found["advdm"] = programs.parts(steps)
with config.unlocked():
  config.protections.eudp.joint_gradients = True
found["joint"] = programs.parts(programs.setting(config, "eudp", mesh, "cpu", 40, 16))
cifar = _cli.get_config("eudp", "cifar10")
found["num_images"] = programs.num_images(cifar)
found["method"] = programs.decide(cifar, "cuda").performance.backend
found["unchanged"] = cifar.performance.backend
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def eight():
  """What `PROGRAM` found on eight CPU devices."""
  flags = f"--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0"
  flags += " --xla_llvm_disable_expensive_passes=true"
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
  command = [sys.executable, "-c", PROGRAM]
  done = subprocess.run(
    command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


def test_parts_of_a_round(eight):
  """demo:smoke trains 3 steps a round and perturbs each of the 3 batches once."""
  assert eight["num_batches"] == 3
  assert eight["parts"] == [["min", 1, 3], ["max", 2, 3]]
  assert eight["joint"] == [["joint", None, 3]]
  assert eight["advdm"] == [["step", None, 3]]


def test_the_max_step_has_no_collectives(eight):
  assert eight["max"]["collectives"] == []


def test_the_min_step_reduces_its_gradients_once(eight):
  found = eight["min"]["collectives"]
  assert {one["kind"] for one in found} == {"all-reduce"} and {one["runs"] for one in found} == {1}
  assert len(found) == 1 and found[0]["arrays"] > 1


def test_the_round_runs_the_parts_as_often_as_they_say(eight):
  """The collectives of the min step, three times: its loop is found and multiplied."""
  kinds = [(one["kind"], one["arrays"], one["bytes"]) for one in eight["min"]["collectives"]]
  found = eight["round"]["collectives"]
  assert [(one["kind"], one["arrays"], one["bytes"]) for one in found] == kinds
  assert {one["runs"] for one in found} == {3}
  # The two parts, which a phase may leave out, are loops of at most one round.
  parts = [loop for loop in eight["round"]["loops"] if loop["trip_count"] is None]
  assert len(parts) == 2 and {loop["runs"] for loop in parts} == {1}


def test_the_state_is_donated(eight):
  assert eight["round"]["donated"] > 0


def test_what_cannot_be_compiled_is_refused(eight):
  divide, few, drawn, shuffled = eight["errors"]
  assert "12 pictures does not divide over 8 devices" in divide
  assert "8 pictures are less than one global batch of 16" in few
  assert "random_noise takes no steps" in drawn
  assert "eudp_shuffled takes no steps" in shuffled


def test_what_a_backend_decides_is_decided_for_the_target(eight):
  assert eight["num_images"] == 45_000
  assert (eight["method"], eight["unchanged"]) == ("gpu", "")


def _aot(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run(
    [sys.executable, "-m", "launch.aot", *words],
    cwd=ROOT,
    env=os.environ | environment,
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
  )


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--config=cifar10"], "--config and --topology are needed"),
    (["--config=cifar10", "--topology=v5e:4x4", "--batches=64,x"], "--batches takes numbers"),
    (["--config=cifar10", "--topology=v5e:4x4", "--experiment=x"], "unknown --experiment=x"),
    (["--config=cifar10", "--topology=1x1x8", "--kind=gpu"], "needs --target_config"),
  ],
)
def test_wrong_arguments(words, message):
  done = _aot(*words)
  assert done.returncode == 2 and message in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed here"
)
def test_without_libtpu():
  done = _aot("--config=cifar10", "--topology=v5e:4x4")
  assert done.returncode == 2
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith("error: ") and 'pip install "jax[tpu]"' in line


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason='the TPU compiler is not installed (pip install "jax[tpu]")',
)
def test_a_small_model_for_a_tpu_slice(tmp_path):
  out = tmp_path / "aot.json"
  words = ["--config=demo:smoke", "--topology=v5e:2x2", "--per_device_batch_size=4"]
  done = _aot(*words, "--num_images=40", "--programs=min,max", f"--out={out}")
  assert done.returncode == 0, done.stderr
  assert "compilation cache" not in done.stderr
  results = json.loads(out.read_text())
  assert "libtpu" in results["header"]["versions"]
  (row,) = results["rows"]
  assert row["fits"] and row["best"] and row["chips"] == 4 and row["num_batches"] == 3
  assert row["hbm_gib"] == 16 and row["peak_gib"] + row["spare_gib"] == pytest.approx(16)
  assert row["programs"]["max"]["collectives"] == {}
  assert set(row["programs"]["min"]["collectives"]) == {"all-reduce"}
  for program in row["programs"].values():
    assert 0 < program["seconds"] < 1 and 0 < program["mfu"] < 1 and program["tflop"] > 0
  total = sum(program["seconds"] for program in row["programs"].values())
  assert row["one_to_one"]["seconds"] == pytest.approx(total)
  assert "v5e:2x2" in done.stdout
