"""`python -m experiments.benchmark` from end to end: our contestants, a stand-in for peers."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from udp_jax.benchmark import tables

# Whole runs of several processes: `make test_long`.
pytestmark = pytest.mark.long

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
  assert latent == {("max", "one_step"), ("impress", "batch"), ("advdm", "advdm")}
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


@pytest.fixture(scope="module")
def raced(entry_point, peer_python: Path, tmp_path_factory: pytest.TempPathFactory):
  """The GPU's races at smoke size on a CPU, with stand-ins for peers: (workdir, process)."""
  workdir = tmp_path_factory.mktemp("gpu") / "run"
  done = entry_point(
    "benchmark",
    "--config=gpu:smoke",
    "--config.peers.torch=('as_written', 'channels_last', 'compile')",
    f"--peer_python={peer_python}",
    f"--workdir={workdir}",
    # More than it takes.
    "--seconds=900",
    "--noprogress",
    *QUICKLY,
  )
  assert (done.returncode, done.stderr) == (0, ""), done.stderr
  return workdir, done


def test_a_gpus_races_are_in_the_order_of_worth(raced) -> None:
  workdir, done = raced
  report = _report(workdir)
  assert "left_out" not in report and "Left out" not in done.stdout
  assert [row["race"] for row in report["rows"]] == [
    *["cifar_ours"] * 3, *["cifar"] * 6, "sd_ours", *["sd"] * 2, *["compile"] * 2
  ]  # fmt: skip
  names = [f"{task.partition('/')[0]}" for task in report["done"]]
  assert names == [*["cifar_ours"] * 3, *["cifar"] * 3, "sd_ours", "sd", "compile"]
  header = report["header"]
  assert set(header["copy_gbs"]) == {"jax", "torch"} and header["copy_gbs"]["torch"] == 20.0
  assert set(header["matmul_gflops"]["jax"]) >= {"float32/tf32", "float32/highest"}
  assert "best copy, GB/s" in (workdir / "bench.md").read_text()


def test_a_gpus_rows_follow_their_own_arithmetic(raced) -> None:
  report = _report(raced[0])
  ours = [row for row in report["rows"] if row["framework"] == "jax"]
  assert {row["variant"] for row in ours} == {"scan_2"}
  for row in report["rows"]:
    assert row["reason"] is None and row["median_s"] > 0
    # A CPU has no memory of a device, and float32 no other precision there.
    assert not {"device_mib", "precision", "remat", "xla_flags"} & set(row)
    # The stand-in counts half a TFLOP, which is then every contestant's; alone, ours counts.
    alone = row["race"].endswith("_ours")
    usual = row["tflop"] if alone else 0.5
    assert row["mfu_of"] == ("jax" if alone else "torch")
    assert row["mfu"] == pytest.approx(1e5 * usual / row["median_s"] / _peak(report))
  # The program is compiled once; another worker loads it.
  assert [row.get("cached", False) for row in ours] == [False] * 8 + [True]
  (sd,) = [row for row in ours if row["race"] == "sd"]
  assert sd["tflop"] > 0 and sd["ratio"] > 0


def test_races_without_time_are_left_out_and_go_on_later(
  raced, entry_point, peer_python: Path
) -> None:
  workdir, _ = raced
  # In place: jax finds the program by the name of the cache's folder too.
  report = _report(workdir)
  last = report["done"].pop()
  rows = [row for row in report["rows"] if row["race"] != "compile"]
  (workdir / "bench.json").write_text(json.dumps(report | {"rows": rows}))
  command = (
    "--config=gpu:smoke",
    "--config.peers.torch=('as_written', 'channels_last', 'compile')",
    f"--peer_python={peer_python}",
    f"--workdir={workdir}",
    "--noprogress",
    *QUICKLY,
  )
  done = entry_point("benchmark", *command, "--seconds=0.001")
  assert (done.returncode, done.stderr) == (0, ""), done.stderr
  after = _report(workdir)
  assert after["rows"] == rows and last not in after["done"]
  assert [row["task"] for row in after["left_out"]] == [last]
  assert f"{last}: no time left" in done.stdout
  assert "## Left out" in (workdir / "bench.md").read_text()
  done = entry_point("benchmark", *command, "--only=compile")
  assert done.returncode == 0, done.stderr
  after = _report(workdir)
  assert after["done"][-1] == last and "left_out" not in after
  assert after["rows"][-2]["cached"] is True


def test_a_gpus_config_is_for_a_gpu(entry_point, tmp_path: Path) -> None:
  peers = "--config.peers.torch=()"
  done = entry_point("benchmark", "--config=gpu", f"--workdir={tmp_path}", peers)
  assert done.returncode == 2
  assert "this config is for backend 'gpu', but jax found only" in done.stderr


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


def test_a_gpus_races_go_on_without_peers_and_say_so(entry_point, tmp_path: Path) -> None:
  empty = tmp_path / "python"
  empty.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'torch'\" >&2\nexit 1\n")
  empty.chmod(0o755)
  done = entry_point(
    "benchmark",
    "--config=gpu:smoke",
    "--only=compile",
    "--config.peers.torch=('channels_last', 'compile')",
    f"--peer_python={empty}",
    f"--workdir={tmp_path / 'run'}",
    "--noprogress",
    *QUICKLY,
  )
  assert done.returncode == 1
  assert done.stderr.startswith("error: PyTorch took no part") and done.stderr.count("\n") == 1
  assert "No module named 'torch'" in done.stderr and "without PyTorch" in done.stdout
  ours, peer = _report(tmp_path / "run")["rows"]
  assert ours["median_s"] > 0 and ours["reason"] is None
  assert "No module named 'torch'" in peer["reason"] and peer["median_s"] is None


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
