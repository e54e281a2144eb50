"""The checks for a GPU: what passes, what fails, what is left out. Without a GPU, by stand-ins."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from launch import cudnn
from tests.launch.conftest import without_flags
from udp_jax.data import manifest, sources
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


def test_what_is_compiled_first_is_run_first(tmp_path: Path) -> None:
  """All compile at once, and what goes on meanwhile starts after they have been asked for."""
  begun, go_on = threading.Semaphore(0), threading.Event()

  def slow() -> None:
    begun.release()
    assert go_on.wait(20)

  def meanwhile() -> None:
    assert begun.acquire(timeout=20)

  def fast(program: object) -> dict[str, Any]:
    go_on.set()
    return {"passes": True}

  fine = lambda program: {"passes": True}
  report = lib.Report(tmp_path / "checks.json", 60)
  lib.run_checks([_check("slow", fine, slow), _check("fast", fast)], report, meanwhile)
  assert [row["name"] for row in _rows(tmp_path / "checks.json")] == ["fast", "slow"]
  assert report.passes


def test_a_check_that_breaks_fails_and_hides_no_other(tmp_path: Path) -> None:
  def breaks(*_: object) -> dict[str, Any]:
    raise RuntimeError("no such kernel\nand more")

  fine = lambda program: {"passes": True}
  report = lib.Report(tmp_path / "checks.json", 60)
  lib.run_checks([_check("a", breaks), _check("b", fine, breaks), _check("c", fine)], report)
  rows = _rows(tmp_path / "checks.json")
  assert {row["name"]: row["passes"] for row in rows} == {"a": False, "b": False, "c": True}
  failures = {row["name"]: row.get("failure") for row in rows}
  assert failures["a"] == failures["b"] == "RuntimeError: no such kernel"
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
    def attend(*arrays: jax.Array, implementation: str, **lengths: jax.Array) -> jax.Array:
      fused = implementation == "cudnn"
      if fused and failure:
        raise RuntimeError(failure)
      queries, keys = (array.shape[1] for array in arrays[:2])
      if fused and (queries % 2 or keys % 2):  # As JAX does.
        raise NotImplementedError(f"Unsupported sequence length Q {queries}, KV {keys}.")
      with jax.numpy_dtype_promotion("standard"):
        out = real(*arrays, implementation="xla", **lengths)
      return out * jnp.asarray(factor, out.dtype) if fused else out

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


@pytest.mark.parametrize("gpu", [Gpu((9, 0), 91500), Gpu((8, 0), 91500), Gpu((10, 0), 91500)])
def test_every_probe_that_must_pass_is_a_program_for_the_gpu(gpu: Gpu) -> None:
  """JAX's own conditions hold for value and gradient, of any length."""
  count = 0
  with cudnn.pretend(gpu):
    for dtype, head_size, queries, keys in lib.probed(smoke=False):
      if attention.cudnn_refusal(gpu, dtype=dtype, head_size=head_size, key_length=keys):
        continue
      shapes = [(1, length, 2, head_size) for length in (queries, keys, keys, queries)]
      given = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
      program = lib.with_gradients("cudnn").trace(*given).lower(lowering_platforms=("cuda",))
      assert "__cudnn$fmhaSoftmaxBackward" in program.as_text(), (dtype, head_size, keys)
      count += keys == 77
  # On Hopper both dtypes' 5 and 2 head sizes; elsewhere those of at most 128 channels.
  assert count == (7 if gpu.capability == (9, 0) else 4)


def test_the_probe_tries_every_size_that_occurs() -> None:
  names = [check.name for check in lib.probes(smoke=False)]
  assert len(set(names)) == len(names) == (5 + 2) * 3
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


def test_tf32_that_does_nothing_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
  from launch import gpu_goldens

  known = gpu_goldens.known("smoke")
  monkeypatch.setattr(gpu_goldens, "sketches", lambda *_: known)
  monkeypatch.setattr(attention, "local_gpu", lambda: Gpu((9, 0), 91500))
  made = gpu_goldens.Prepared(None, None, {}, np.zeros(1))
  found = lib._golden("smoke", "tf32").run((lambda *_: (), made))
  assert found["passes"] is True and "below 1e-05" in found["note"]
  assert lib._golden("smoke", "highest").run((lambda *_: (), made))["note"] == ""


@pytest.mark.parametrize(("smoke", "size"), [(False, 32), (True, 16)])
def test_the_words_of_the_repeated_run_are_those_of_its_entry_point(
  smoke: bool, size: int, tmp_path: Path, load_entry_point
) -> None:
  """Its pictures need no package that a machine may lack."""
  words = lib.words_of_run(tmp_path / "pictures.npz", smoke)
  entry_point = load_entry_point("experiments.udp")
  assert entry_point.parse(*words, f"--workdir={tmp_path}") == ["program"]
  config = flags.FLAGS["config"].value
  assert config.rows == ("udp",) and config.num_rounds == (2 if smoke else 5)
  options = dict(image_size=config.data.image_size, limit=config.data.limit)
  found = sources.load(config.data.source, classes=config.data.classes or None, **options)
  assert found.images.shape == (24 if smoke else 72, size, size, 3)


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
