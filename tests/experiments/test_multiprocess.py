"""Several real processes: the files of one process, and an end in good order whatever happens.

Two processes with a device each are compared with one process of two devices: the same program with
the same sums, so bit for bit. Stopping, dying and going on are one chain of runs in one folder,
which ends as if nobody had disturbed it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from udp_jax.data import manifest
from udp_jax.errors import PeerLostError
from udp_jax.runtime.metrics_log import read_metrics

# Whole runs of several processes, some of them killed: `make test_long`.
pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 24
# Bounds for a loaded machine; what is bounded takes a second or two.
PATIENCE_S = 240


def _words(workdir: Path) -> list[str]:
  return [
    *("--config=demo_pixels:smoke", f"--workdir={workdir}", "--config.rows=('eudp',)"),
    f"--config.num_rounds={ROUNDS}",
    "--config.checkpoint.every_rounds=6",
    # Three batches of samples for two processes.
    "--config.performance.sample_batch_size=3",
  ]


class Local(NamedTuple):
  """A running `launch/local.sh 2`."""

  process: subprocess.Popen
  logs: Path

  def children(self) -> dict[int, int]:
    """Process number -> pid."""
    found = {}
    for folder in Path("/proc").iterdir():
      if folder.name.isdigit():
        try:
          parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
          env = (folder / "environ").read_bytes()
        except OSError:
          continue
        number = re.search(rb"UDP_PROCESS_ID=(\d+)", env)
        if parent == self.process.pid and number:
          found[int(number[1])] = int(folder.name)
    return found

  def end(self) -> tuple[int, str, str]:
    """(exit code, stderr of the script and process 0, output of process 1)."""
    out, said = self.process.communicate(timeout=PATIENCE_S)
    assert "Gloo" not in out  # Results alone.
    return self.process.returncode, said, (self.logs / "process-1.log").read_text()


def _local(words: list[str], logs: Path, environment: dict[str, str]) -> Local:
  command = ["bash", "launch/local.sh", "2", f"--log_dir={logs}", "--grace_s=60", "--"]
  process = subprocess.Popen(
    [*command, sys.executable, "-m", "experiments.eudp", *words],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  return Local(process, logs)


def _run_until(local: Local, metrics: Path, position: int) -> None:
  deadline = time.monotonic() + PATIENCE_S
  while _last(metrics) < position:
    assert local.process.poll() is None, local.end()
    assert time.monotonic() < deadline
    time.sleep(0.002)


def _last(metrics: Path) -> int:
  return max((record["position"] for record in read_metrics(metrics)), default=0)


def _files(workdir: Path, *patterns: str) -> dict[str, bytes]:
  return {
    path.relative_to(workdir).as_posix(): path.read_bytes()
    for pattern in patterns
    for path in workdir.rglob(pattern)
  }


def _one(
  words: list[str], environment: dict[str, str], devices: int
) -> subprocess.CompletedProcess[str]:
  """A single process with that many devices."""
  flags = f"{environment['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
  return subprocess.run(
    [sys.executable, "-m", "experiments.eudp", *words],
    cwd=ROOT,
    env=environment | {"XLA_FLAGS": flags},
    check=False,
    capture_output=True,
    text=True,
    timeout=600,
  )


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, process_environment: dict[str, str]) -> Path:
  """The study by one process with two devices."""
  workdir = tmp_path_factory.mktemp("one") / "run"
  done = _one(_words(workdir), process_environment, devices=2)
  assert done.returncode == 0, done.stderr
  return workdir


class Chain(NamedTuple):
  """What happened to the runs in one folder, in their order: (code, process 0, process 1)."""

  workdir: Path
  killed: tuple[int, str, str]
  killed_at: int
  killed_s: float
  copy: Path
  stopped: tuple[int, str, str]
  stopped_at: int
  finished: tuple[int, str, str]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, process_environment: dict[str, str]) -> Chain:
  """Two processes: kill -9 of the first; then SIGTERM to the second; then to the end."""
  folder = tmp_path_factory.mktemp("two")
  workdir = folder / "run"
  metrics = workdir / "stages" / "protect_eudp" / "metrics.jsonl"

  local = _local(_words(workdir), folder / "logs1", process_environment)
  _run_until(local, metrics, 8)
  killed_at = _last(metrics)
  os.kill(local.children()[0], signal.SIGKILL)
  start = time.monotonic()
  killed = local.end()
  killed_s = time.monotonic() - start
  shutil.copytree(workdir, folder / "copy")

  local = _local(_words(workdir), folder / "logs2", process_environment)
  _run_until(local, metrics, killed_at + 4)
  os.kill(local.children()[1], signal.SIGTERM)
  stopped = local.end()
  stopped_at = _last(metrics)

  finished = _local(_words(workdir), folder / "logs3", process_environment).end()
  return Chain(workdir, killed, killed_at, killed_s, folder / "copy", stopped, stopped_at, finished)


def test_kill_of_one_ends_the_other_with_a_message(chain: Chain) -> None:
  """Process 0 is the hard case: jax's own service is in it."""
  code, said, other = chain.killed
  assert code == 128 + signal.SIGKILL  # Of the first process that failed.
  assert "error: process 0 of 2 ended with signal KILL" in said
  lines = [line for line in other.splitlines() if line and not line.startswith("[Gloo]")]
  assert lines == [
    "error: process 0 of 2 died (its connection broke); run the same command to go on from the "
    "last checkpoint"
  ]
  assert chain.killed_s < 60


def test_sigterm_to_one_saves_in_all_at_the_same_position(chain: Chain) -> None:
  code, said, other = chain.stopped
  assert code == 0, said + other
  assert chain.stopped_at < ROUNDS, "the signal came too late to show anything"
  message = f"protect eudp: stopped at round {chain.stopped_at} of {ROUNDS} and saved; run the same"
  assert message in said and message in other
  assert "another process received SIGTERM" in said
  assert "Traceback" not in said + other
  resumed = re.search(r"protect eudp: going on from round (\d+) of", said)
  # Of the killed run, one interval was lost, and a second one if its save was still under way.
  assert resumed and chain.killed_at - 12 <= int(resumed[1]) <= chain.killed_at


def test_after_all_that_the_files_are_those_of_one_process(chain: Chain, one: Path) -> None:
  code, said, other = chain.finished
  assert code == 0, said + other
  assert f"protect eudp: going on from round {chain.stopped_at} of {ROUNDS}" in said
  for pattern, least in (("*.png", 32), ("*.safetensors", 1)):
    first, second = _files(one, pattern), _files(chain.workdir, pattern)
    assert first.keys() == second.keys() and len(first) >= least
    assert [name for name in first if first[name] != second[name]] == []
  records = read_metrics(chain.workdir / "stages" / "protect_eudp" / "metrics.jsonl")
  assert [record["position"] for record in records] == list(range(1, ROUNDS + 1))


def test_merged_manifests_are_those_of_one_process(chain: Chain, one: Path) -> None:
  samples = "threats/eudp/seed0/samples"
  for folder in ("clean", "holdout", "protected/eudp", samples):
    first, second = (
      json.loads((run / folder / "manifest.json").read_text()) for run in (one, chain.workdir)
    )
    assert manifest.is_complete(chain.workdir / folder)
    assert first["images"] == second["images"] and first.get("worst") == second.get("worst")
  left = [*chain.workdir.rglob("*.part-*"), *chain.workdir.rglob(".incomplete")]
  assert left == []


def test_judged_like_by_one_process_and_reported_once(chain: Chain, one: Path) -> None:
  first, second = (
    json.loads((run / "threats/eudp/seed0/evaluation.json").read_text())
    for run in (one, chain.workdir)
  )
  assert first.keys() == second.keys()
  for name, value in first.items():
    # Features are computed in other batches where there are two devices.
    assert value is None or second[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
  assert (chain.workdir / "report.html").is_file()
  other = [line for line in chain.finished[2].splitlines() if not line.startswith("[Gloo]")]
  assert other == []  # Process 0 alone speaks.


def test_one_process_with_one_device_goes_on_where_two_were_killed(
  chain: Chain, one: Path, process_environment: dict[str, str]
) -> None:
  done = _one([*_words(chain.copy), "--noevaluate"], process_environment, devices=1)
  assert done.returncode == 0, done.stderr
  resumed = re.search(r"protect eudp: going on from round (\d+) of", done.stderr)
  assert resumed and int(resumed[1]) <= chain.killed_at
  assert manifest.is_complete(chain.copy / "protected" / "eudp")
  first, second = (
    manifest.read_folder(run / "protected" / "eudp")[0].images for run in (one, chain.copy)
  )
  # Gradients are summed in another order on one device: weights differ in their last bits, and with
  # them, now and then, the sign of a step.
  assert np.mean(first != second) < 0.02


def test_exit_code_of_a_lost_process_is_documented() -> None:
  from experiments import _cli

  assert PeerLostError.exit_code == 6
  assert "6 another process of the run died" in " ".join((_cli.__doc__ or "").split())
