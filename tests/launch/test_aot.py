"""Ahead-of-time compilation as its users run it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from launch import chips
from tests.launch.conftest import ROOT


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
    (["--config=cifar10", "--topology=h200", "--kind=gpu"], "KIND of h100"),
    (["--config=cifar10", "--topology=v5e:4x4", "--top=-1"], "--top"),
  ],
)
def test_wrong_arguments(words, message, run_module):
  done = run_module("launch.aot", *words)
  assert done.returncode == 2 and message in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed here"
)
def test_without_libtpu(run_module):
  done = run_module("launch.aot", "--config=cifar10", "--topology=v5e:4x4")
  assert done.returncode == 2
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith("error: ") and 'pip install "jax[tpu]"' in line


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason='the TPU compiler is not installed (pip install "jax[tpu]")',
)
def test_a_small_model_for_a_tpu_slice(tmp_path):
  out = tmp_path / "aot.json"
  words = ["--config=demo_pixels:smoke", "--topology=v5e:2x2", "--per_device_batch_size=4"]
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


@pytest.mark.slow
@pytest.mark.skipif(
  not any(importlib.util.find_spec(plugin.module) for plugin in chips.PLUGINS.values()),
  reason=f"no compiler for GPUs is installed ({chips.install_gpu()})",
)
def test_a_small_model_for_gpus(tmp_path):
  out = tmp_path / "aot.json"
  words = [
    "--config=demo_pixels:smoke",
    "--kind=gpu",
    "--topology=h100:2",
    "--per_device_batch_size=8",
  ]
  words += ["--config.performance.dtype=bfloat16", "--top=3"]
  done = _aot(*words, "--num_images=40", f"--out={out}")
  assert done.returncode == 0, done.stderr
  (row,) = json.loads(out.read_text())["rows"]
  assert row["fits"] and row["devices"] == 2 and 0 < row["peak_gib"] < row["hbm_gib"] < 60
  low, high, whole = (row["programs"][name] for name in ("min", "max", "round"))
  assert high["collectives"] == {} and set(low["collectives"]) == {"all-reduce"}
  for program in (low, high, whole):
    assert program["tflop"] > 0 and program["kernels"] > 0 and program["seconds"] is None
    assert 0 < program["bound_mfu"] < 1 and len(program["largest"]) == 3
    parts = [program[f"bound_{part}"] for part in ("products", "bytes", "launches")]
    assert program["bound_seconds"] == pytest.approx(sum(parts))
  # The round is its parts, as often as it takes them, and little else.
  steps = sum(part["tflop"] * part["steps"] for part in (low, high))
  assert whole["tflop"] == pytest.approx(steps, rel=0.02)
  assert row["one_to_one"]["bound_seconds"] == pytest.approx(
    low["bound_seconds"] + high["bound_seconds"]
  )
  assert "h100:2" in done.stdout
