"""The checks for a GPU: what passes, what fails, what is left out. Without a GPU, by stand-ins."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.launch.conftest import without_flags
from udp_jax.data import manifest
from udp_jax.ops import attention
from udp_jax.ops.attention import Gpu

with without_flags():
  from launch import gpu_checks as lib


def _rows(path: Path) -> list[dict[str, Any]]:
  return json.loads(path.read_text())["rows"]


def _check(name: str, run: Any, compile_: Any = lambda: None) -> lib.Check:
  return lib.Check("goldens", name, compile_, run)


def test_every_row_is_on_disk_as_soon_as_it_is_known(tmp_path: Path, capsys) -> None:
  path = tmp_path / "checks.json"
  report = lib.Report(path, 60)
  seen = []

  def run(program: object) -> dict[str, Any]:
    seen.append(len(_rows(path)) if path.exists() else 0)
    return {"passes": True, "error": 1.0}

  lib.run_checks([_check("one", run), _check("two", run)], report)
  assert seen == [0, 1] and len(_rows(path)) == 2 and report.passes
  assert [line.split()[:3] for line in capsys.readouterr().out.splitlines()] == [
    ["ok", "goldens", "one"],
    ["ok", "goldens", "two"],
  ]


def test_a_check_that_breaks_fails_and_hides_no_other(tmp_path: Path) -> None:
  def breaks(*_: object) -> dict[str, Any]:
    raise RuntimeError("no such kernel\nand more")

  fine = lambda program: {"passes": True}
  report = lib.Report(tmp_path / "checks.json", 60)
  lib.run_checks([_check("a", breaks), _check("b", fine, breaks), _check("c", fine)], report)
  rows = _rows(tmp_path / "checks.json")
  assert [row["passes"] for row in rows] == [False, False, True]
  assert rows[0]["failure"] == rows[1]["failure"] == "RuntimeError: no such kernel"
  assert not report.passes


def test_what_comes_too_late_is_left_out_and_fails(tmp_path: Path) -> None:
  report = lib.Report(tmp_path / "checks.json", 0.2)
  slow = lambda: time.sleep(0.5)
  started = time.monotonic()
  lib.run_checks([_check(str(i), lambda program: {"passes": True}, slow) for i in range(3)], report)
  assert time.monotonic() - started < 0.5
  assert [row["left_out"] for row in _rows(tmp_path / "checks.json")] == ["no time left"] * 3
  assert not report.passes


def test_a_noted_row_is_no_failure(tmp_path: Path) -> None:
  report = lib.Report(tmp_path / "checks.json", 60)
  report.add("repeat", "default", passes=None, equal=False)
  assert report.passes


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch):
  """A function that makes jax answer as if it were on a GPU whose cuDNN is off by a factor."""
  real = jax.nn.dot_product_attention

  def pretend(gpu: Gpu, factor: float, failure: str = "") -> None:
    def attend(*arrays: jax.Array, implementation: str) -> jax.Array:
      if implementation == "cudnn" and failure:
        raise RuntimeError(failure)
      out = real(*arrays, implementation="xla")
      return out * jnp.asarray(factor, out.dtype) if implementation == "cudnn" else out

    monkeypatch.setattr(jax.nn, "dot_product_attention", attend)
    monkeypatch.setattr(attention, "local_gpu", lambda: gpu)

  return pretend


@pytest.mark.parametrize(
  ("gpu", "factor", "failure", "head_size", "expected"),
  [
    (Gpu((9, 0), 91500), 1.0, "", 160, {"passes": True, "taken": True, "works": True}),
    (Gpu((9, 0), 91500), 1.1, "", 160, {"passes": False, "taken": True, "works": False}),
    (Gpu((9, 0), 91500), 1.0, "no plan", 64, {"passes": False, "taken": True, "works": False}),
    # What `cudnn_refusal` does not let pass is only noted, whether it works or not.
    (Gpu((8, 0), 91500), 1.0, "", 160, {"passes": None, "taken": False, "works": True}),
    (Gpu((8, 0), 91500), 1.0, "no plan", 160, {"passes": None, "taken": False, "works": False}),
  ],
)
def test_the_probe_compares_cudnn_with_what_we_take_it_for(
  gpu, factor, failure, head_size, expected, on_gpu
) -> None:
  on_gpu(gpu, factor, failure)
  check = lib._probe("bfloat16", head_size, 16, 7)
  found = check.run(check.compile())
  assert {key: found[key] for key in expected} == expected
  assert found["failure"] == failure
  assert bool(found["refused"]) == (not expected["taken"])


def test_the_probe_tries_every_size_that_occurs() -> None:
  names = [check.name for check in lib.probes(smoke=False)]
  assert len(set(names)) == len(names) == 2 * 5 * 3
  assert "float16 4096x4096 heads of 160" in names and "bfloat16 256x77 heads of 256" in names


def test_every_part_is_computed_in_every_mode() -> None:
  names = [check.name for check in lib.goldens(smoke=False)]
  parts, modes = ("cifar10", "sd_block", "sd_up", "vae"), ("highest", "tf32", "bf16")
  assert names == [f"{part} {mode}" for part in parts for mode in modes]


def test_a_golden_that_differs_fails_and_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
  from launch import gpu_goldens

  known = gpu_goldens.known("smoke")
  changed = known | {"input_x": known["input_x"] * 1.01}
  monkeypatch.setattr(gpu_goldens, "sketches", lambda *_: changed)
  made = gpu_goldens.Prepared(None, None, {}, np.zeros(1))
  found = lib._golden("smoke", "highest").run((lambda *_: (), made))
  assert found["passes"] is False and found["worst"] == "input_x"
  assert found["error"] == pytest.approx(0.01, rel=1e-3)
  assert lib._golden("smoke", "bf16").run((lambda *_: (), made))["passes"] is True
  json.dumps(found, allow_nan=False)


def _run(folder: Path, pictures: np.ndarray, loss: float) -> Path:
  names = [f"{i:02d}" for i in range(len(pictures))]
  manifest.write_folder(folder / "protected" / "udp", pictures, names, record={"method": "udp"})
  log = folder / "stages" / "protect_udp" / "metrics.jsonl"
  log.parent.mkdir(parents=True)
  line = {"position": 1, "train_loss": loss, "max_loss": 0.5, "seconds": loss}
  log.write_text(json.dumps(line) + "\n")
  return folder


def test_runs_are_equal_only_bit_for_bit(tmp_path: Path, pictures: np.ndarray) -> None:
  other = pictures.copy()
  other[3, 2, 1, 0] ^= 1
  one = _run(tmp_path / "one", pictures, 0.25)
  same = _run(tmp_path / "same", pictures, 0.25)
  pixel = _run(tmp_path / "pixel", other, 0.25)
  loss = _run(tmp_path / "loss", pictures, 0.25 + 2**-30)
  assert lib.compare_runs(one, same) == {"equal": True, "differing": 0.0, "losses": 0.0}
  assert lib.compare_runs(one, pixel) == {
    "equal": False,
    "differing": 1 / pictures.size,
    "losses": 0.0,
  }
  found = lib.compare_runs(one, loss)
  assert not found["equal"] and found["differing"] == 0 and found["losses"] > 0


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--out=x"], "no GPU that jax can use is here; --smoke"),
    (["--smoke"], "--out is needed"),
    (["--smoke", "--out=x", "--checks=probe,others"], "--checks: no others; known: probe, goldens"),
  ],
)
def test_wrong_arguments(words, message, run_module) -> None:
  done = run_module("launch.gpu_checks", *words)
  assert done.returncode == 2
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith("error: ") and message in line
