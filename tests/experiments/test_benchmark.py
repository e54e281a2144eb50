"""`python -m experiments.benchmark` from end to end: our contestants, a stand-in for peers."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from udp_jax.benchmark import tables

# Whole runs of several processes: `make test_slow`.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = ROOT / "tests" / "benchmark" / "stand_in.py"
QUICKLY = ("--config.races.min_cycles=1", "--config.races.max_cycles=1")


@pytest.fixture(scope="module")
def peer_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """An interpreter that runs the stand-in whatever script it is given."""
  path = tmp_path_factory.mktemp("peer") / "python"
  command = f'exec "{sys.executable}" "{STAND_IN}" "[0.25, 0.5]"'
  path.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" {command}\n')
  path.chmod(0o755)
  return path


@pytest.fixture(scope="module")
def finished(entry_point, tmp_path_factory: pytest.TempPathFactory):
  """A finished smoke run without peers: (workdir, process)."""
  workdir = tmp_path_factory.mktemp("bench") / "run"
  done = entry_point("benchmark", "--config=default:smoke", f"--workdir={workdir}", *QUICKLY)
  assert done.returncode == 0, done.stderr
  return workdir, done


def _report(workdir: Path) -> dict:
  return json.loads((workdir / "bench.json").read_text())


def test_every_section_is_measured(finished) -> None:
  workdir, done = finished
  report = _report(workdir)
  header = report["header"]
  assert header["matmul_gflops"]["jax"]["float32"] > 0
  assert header["threads"]["jax"] >= 1 and header["versions"]["jax"] and header["date"]
  assert "experiments.benchmark --config=default:smoke" in header["command"]
  assert all(report[section] for section in ("primitives", "cost", "scaling", "host", "compile"))
  assert len(report["done"]) == len(set(report["done"]))
  assert "smoke run" in done.stdout and "all numbers:" in done.stdout
  markdown = (workdir / "bench.md").read_text()
  assert "## Races" in markdown and "| one_step |" in markdown


def test_rows_follow_the_schema_and_their_own_arithmetic(finished) -> None:
  report = _report(finished[0])
  rows = report["rows"]
  assert all(set(row) == set(tables.ROW_FIELDS) for row in rows)
  everything = [row for row in rows if row["framework"] == "jax"]
  latent = {(row["work"], row["variant"]) for row in everything if row["model"] == "sd_tiny"}
  assert latent == {("max", "one_step"), ("impress", "batch")}
  ours = {(row["work"], row["variant"]): row for row in everything if row["model"] == "tiny"}
  assert set(ours) == {
    ("round", "one_step"),
    ("min", "one_step"),
    ("max", "one_step"),
  }
  for row in everything:
    assert row["reason"] is None
    assert 0 < row["p10_s"] <= row["median_s"] <= row["p90_s"]
    assert row["compile_s"] > 0 and row["warmup_s"] > 0 and row["cpu_s"] > 0
    assert 50 < row["peak_rss_mib"] < 8000
    assert row["ratio"] is None
    assert row["images_per_s"] == pytest.approx(4 / row["median_s"])
    peak = report["header"]["matmul_gflops"]["jax"]["float32"]
    assert row["percent_of_peak"] == pytest.approx(1e5 * row["tflop"] / row["median_s"] / peak)
  tflop = {key: row["tflop"] for key, row in ours.items()}
  # A round is a min and a max step.
  assert tflop["round", "one_step"] == pytest.approx(
    tflop["min", "one_step"] + tflop["max", "one_step"], rel=1e-3
  )
  # Weight gradients are in the min step alone.
  assert tflop["min", "one_step"] > 1.2 * tflop["max", "one_step"]


def test_there_is_no_flax_peer_and_it_says_so(finished) -> None:
  rows = [row for row in _report(finished[0])["rows"] if row["framework"] == "diffusers_flax"]
  assert [row["model"] for row in rows] == ["tiny"]
  assert all(row["median_s"] is None and "no UNet2DModel" in row["reason"] for row in rows)


def test_devices_agree(finished) -> None:
  one, two = _report(finished[0])["scaling"]
  assert (one["devices"], one["collectives"], one["differs"]) == (1, 0, 0.0)
  assert two["devices"] == 2 and two["collectives"] > 0
  # At most a step of 2 levels, for values whose gradient is nearly zero.
  assert two["max_difference_255"] <= 4.01 and two["differs"] < 0.05


def test_the_cache_is_used_where_it_is_measured(finished) -> None:
  (row,) = _report(finished[0])["compile"]
  assert row["compile_cached_s"] < row["compile_cold_s"] and row["cache_mib"] > 0
  (host,) = _report(finished[0])["host"]
  assert 0 < host["dispatch_s"] < host["round_s"]


def test_a_second_call_goes_on_and_another_config_is_refused(finished, entry_point, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  report = _report(workdir)
  kept = next(row for row in report["primitives"] if row["primitive"].startswith("conv"))
  lost = "primitives/group_norm_32x32x128/float32"
  report["done"].remove(lost)
  report["primitives"] = [r for r in report["primitives"] if "group_norm" not in r["primitive"]]
  (workdir / "bench.json").write_text(json.dumps(report))
  command = ("--config=default:smoke", f"--workdir={workdir}", *QUICKLY)
  done = entry_point("benchmark", *command)
  assert done.returncode == 0, done.stderr
  after = _report(workdir)
  assert sorted(after["done"]) == sorted([*report["done"], lost])
  # What was there is as it was, to the digit; what was lost was measured again.
  assert after["rows"] == report["rows"] and kept in after["primitives"]
  assert sum("group_norm" in row["primitive"] for row in after["primitives"]) == 3
  done = entry_point("benchmark", *command, "--config.races.scan_steps=(2,)")
  assert done.returncode == 2
  assert "was begun with another config" in done.stderr and done.stderr.count("\n") == 1


def test_only_and_a_race_with_peers(entry_point, peer_python: Path, tmp_path: Path) -> None:
  done = entry_point(
    "benchmark",
    "--config=default:smoke",
    "--only=^max/tiny",
    "--config.peers.torch=('as_written', 'channels_last')",
    f"--peer_python={peer_python}",
    f"--workdir={tmp_path}",
    "--config.races.min_cycles=2",
    "--noprogress",
  )
  assert (done.returncode, done.stderr) == (0, ""), done.stderr
  report = _report(tmp_path)
  assert report["done"] == ["max/tiny/b4/float32"]
  assert not any(report[section] for section in ("primitives", "cost", "scaling", "host"))
  ours, written, best = [row for row in report["rows"] if row["framework"] != "diffusers_flax"]
  for row in (written, best):
    # The stand-in says a quarter of a second, then half.
    assert (row["median_s"], row["p10_s"], row["p90_s"]) == (0.375, 0.275, 0.475)
    assert row["percent_of_peak"] == pytest.approx(1e5 * 0.5 / 0.375 / _peak(report))
  assert ours["ratio"] == pytest.approx(ours["median_s"] / 0.375)
  assert ours["best_peer"] == "torch as_written"
  assert report["header"]["versions"]["torch"] == "1.2"
  assert "Ours over the fastest peer" in done.stdout


def _peak(report: dict) -> float:
  return max(rates["float32"] for rates in report["header"]["matmul_gflops"].values())


def _fails(entry_point, workdir: Path, *words: str) -> str:
  done = entry_point("benchmark", "--config=default:smoke", f"--workdir={workdir}", *words)
  assert done.returncode == 2
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
  return done.stderr


def test_missing_peers(entry_point, tmp_path: Path) -> None:
  asks = "--config.peers.torch=('channels_last',)"
  workdir = tmp_path / "run"
  error = _fails(entry_point, workdir, asks, "--peer_python=/nowhere/bin/python")
  assert "/nowhere/bin/python is not there" in error and "make bench" in error
  # An interpreter without torch.
  empty = tmp_path / "python"
  empty.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'torch'\" >&2\nexit 1\n")
  empty.chmod(0o755)
  error = _fails(entry_point, workdir, asks, f"--peer_python={empty}")
  assert "No module named 'torch'" in error and "make bench" in error
  assert not (workdir / "bench.json").exists()


def test_unwritable_workdir(entry_point, tmp_path: Path) -> None:
  (tmp_path / "file").write_text("")
  workdir = tmp_path / "file" / "run"
  done = entry_point("benchmark", "--config=default:smoke", f"--workdir={workdir}")
  assert done.returncode == 4
  assert done.stderr.startswith("error: cannot write") and done.stderr.count("\n") == 1


def test_a_failure_of_ours_is_a_row_and_an_exit_code(entry_point, tmp_path: Path) -> None:
  done = entry_point(
    "benchmark",
    "--config=default:smoke",
    "--only=^max/tiny",
    "--config.performance.conv_method=nonsense",
    f"--workdir={tmp_path}",
  )
  assert done.returncode == 1
  (row,) = [row for row in _report(tmp_path)["rows"] if row["framework"] == "jax"]
  assert "unknown conv_method 'nonsense'" in row["reason"] and row["median_s"] is None
  assert os.listdir(tmp_path / "logs")
