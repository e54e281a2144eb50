"""Killed, terminated and interrupted runs end like one that nobody disturbed."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax import protections
from udp_jax.data import image_set
from udp_jax.models import sharded
from udp_jax.models.context import Model
from udp_jax.protections import constraints
from udp_jax.runtime import mesh, metrics_log
from udp_jax.runtime.metrics_log import read_metrics
from udp_jax.stages import protect
from udp_jax.stages.records import Row, Run

ROOT = Path(__file__).resolve().parents[2]
ROUNDS, STEPS = 30, 40
SEED = 20261122


def _words(workdir: Path) -> list[str]:
  return [
    *("--config=demo_pixels:smoke", f"--workdir={workdir}", "--config.rows=('eudp',)"),
    f"--config.num_rounds={ROUNDS}",
    f"--config.threat.options.train_steps={STEPS}",
    # Few enough checkpoints that a kill loses some rounds.
    *("--config.checkpoint.every_rounds=6", "--config.checkpoint.every_steps=8"),
  ]


def _interrupt(
  workdir: Path, metrics: Path, position: int, number: int, environment: dict[str, str]
) -> tuple[int, str, int]:
  """Runs until `metrics` has passed `position`, sends a signal; (exit code, stderr, position)."""
  process = subprocess.Popen(
    [sys.executable, "-m", "experiments.eudp", *_words(workdir)],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    process_group=0,
  )
  deadline = time.monotonic() + 300
  while _last(metrics) < position:
    assert process.poll() is None, process.stderr.read() if process.stderr else ""
    assert time.monotonic() < deadline
    time.sleep(0.002)
  os.killpg(process.pid, number)
  _, stderr = process.communicate(timeout=120)
  return process.returncode, stderr, _last(metrics)


def _last(metrics: Path) -> int:
  return max((record["position"] for record in read_metrics(metrics)), default=0)


def _results(workdir: Path) -> dict[str, bytes]:
  """Every picture and every measured number."""
  return {
    path.relative_to(workdir).as_posix(): path.read_bytes()
    for pattern in ("*.png", "evaluation.json", "*.safetensors")
    for path in workdir.rglob(pattern)
  }


def protect_stage(workdir: Path, pause_s: float = 0.0) -> None:
  """A stage of 60 random steps, of a few operations each; `pause_s` after every round."""
  images = np.random.default_rng(0).integers(60, 200, (6, 8, 8, 3), dtype=np.uint8)

  def objective(params, images, cond, keys):
    del params, cond
    targets = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:]))(keys)
    return jnp.square(images - targets).mean((1, 2, 3)), {}

  class Slow(metrics_log.MetricsWriter):
    def write(self, *args, **options):
      super().write(*args, **options)
      time.sleep(pause_s)

  inner = protections.pgd(objective, constraints.linf(16 / 255), protections.sign_descent(1 / 255))
  run = Run(
    mesh=mesh.make_mesh(jax.devices()[:1]),
    folder=workdir / "scratch",
    key=jax.random.key(0),
    label="protect",
    global_batch_size=6,
    checkpoint_every=10,
    progress=False,
  )
  row = Row("a test", "a test", {}, 60, 16.0, record={"method": "a test"})
  clean = image_set.finish(image_set.ImageSet(images, [f"p{i}" for i in range(6)]), "a test")
  protection = protections.over_batches(inner)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(metrics_log, "MetricsWriter", Slow)
    patch.setattr(protect, "build_protection", lambda *_, **__: protection)
    patch.setattr(sharded, "split_weights", lambda model, mesh: model)
    protect.protect(row, Model(None), clean, workdir / "out", run)


@pytest.mark.slow
def test_a_killed_stage_ends_like_an_undisturbed_one(
  tmp_path: Path, process_environment: dict[str, str]
) -> None:
  """The whole programs are left to `make test_slow`."""
  workdir, metrics = tmp_path / "killed", tmp_path / "killed" / "scratch" / "metrics.jsonl"
  code = "import sys; from pathlib import Path; from tests.experiments import test_interruptions; "
  code += "test_interruptions.protect_stage(Path(sys.argv[1]), 0.05)"
  process = subprocess.Popen(
    [sys.executable, "-c", code, str(workdir)], cwd=ROOT, env=process_environment
  )
  deadline = time.monotonic() + 300
  while _last(metrics) < 35:
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  process.kill()
  assert process.wait(60) == -signal.SIGKILL
  killed = _last(metrics)
  assert 35 <= killed < 60, "the kill came too late to show anything"
  assert not list(workdir.rglob("*.png"))
  names = [path.name for path in (workdir / "scratch" / "checkpoints").iterdir()]
  # One interval was lost, and a second one if its save was still under way.
  assert killed - 20 <= max(int(name) for name in names if name.isdigit()) <= killed
  protect_stage(workdir)
  protect_stage(tmp_path / "undisturbed")
  assert [r["position"] for r in read_metrics(metrics)] == list(range(1, 61))
  first, second = _results(tmp_path / "undisturbed"), _results(workdir)
  assert len(first) == 6 and first == second


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, entry_point) -> Path:
  workdir = tmp_path_factory.mktemp("undisturbed") / "run"
  done = entry_point("eudp", *_words(workdir))
  assert done.returncode == 0, done.stderr
  return workdir


@pytest.mark.long
def test_interrupted_at_random_moments_the_result_is_the_same(
  undisturbed: Path, tmp_path: Path, entry_point, process_environment: dict[str, str]
) -> None:
  workdir = tmp_path / "run"
  protecting = workdir / "stages" / "protect_eudp" / "metrics.jsonl"
  training = workdir / "threats" / "eudp" / "seed0" / "metrics.jsonl"
  # Twice in each stage: a kill, which loses what came after the last checkpoint, then a request.
  moments = random.Random(SEED)
  for metrics, label, total, every, request, code in (
    (protecting, "protect eudp: stopped at round", ROUNDS, 6, signal.SIGTERM, 0),
    (training, "train eudp seed 0: stopped at step", STEPS, 8, signal.SIGINT, 130),
  ):
    moment = moments.randint(2 * every + 1, total // 2 + 3)
    returned, _, killed = _interrupt(workdir, metrics, moment, signal.SIGKILL, process_environment)
    assert returned == -signal.SIGKILL
    assert moment <= killed < total, "the kill came too late to show anything"

    moment = moments.randint(total - 10, total - 6)
    returned, said, position = _interrupt(workdir, metrics, moment, request, process_environment)
    assert returned == code, said
    assert f"{label} {position} of {total} and saved; run the same command to go on\n" in said
    assert "Traceback" not in said
    # Of the killed run, one interval was lost, and a second one if its save was still under way.
    resumed = re.search(r"going on from \w+ (\d+) of", said)
    assert resumed and killed - 2 * every <= int(resumed[1]) <= killed
    assert position < total, "the request came too late to show anything"
  done = entry_point("eudp", *_words(workdir))
  assert done.returncode == 0, done.stderr
  assert "train eudp seed 0: going on from step" in done.stderr
  assert [r["position"] for r in read_metrics(protecting)] == list(range(1, ROUNDS + 1))
  first, second = _results(undisturbed), _results(workdir)
  assert first.keys() == second.keys() and len(first) > 30
  assert [name for name in first if first[name] != second[name]] == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_stopped_where_nothing_is_to_save(
  number: int, code: int, tmp_path: Path, process_environment: dict[str, str]
) -> None:
  """Between the loops: one line, and no half-written folder."""
  returned, said, _ = _before_the_loop(tmp_path / "run", number, process_environment)
  assert returned == code, said
  name = signal.Signals(number).name
  assert f"stopped by {name}; what is finished is saved: run the same command to go on" in said
  assert "Traceback" not in said
  left = {path.parent for path in (tmp_path / "run").rglob("*.png")}
  assert not any((folder / ".incomplete").exists() for folder in left)


def _before_the_loop(
  workdir: Path, number: int, environment: dict[str, str]
) -> tuple[int, str, None]:
  process = subprocess.Popen(
    [sys.executable, "-m", "experiments.eudp", *_words(workdir)],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    process_group=0,
  )
  assert process.stderr is not None
  said = ""
  while "compiling" not in said:  # Said before anything is compiled.
    line = process.stderr.readline()
    assert line, said
    said += line
  os.killpg(process.pid, number)
  return process.wait(120), said + process.stderr.read(), None
