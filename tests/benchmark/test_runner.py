"""The benchmark's own accounts: workers that are kept, rows that failed."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from experiments import _cli
from udp_jax.benchmark import plan, runner
from udp_jax.benchmark.worker import OutOfTime, WorkerError
from udp_jax.errors import ConfigError


def test_a_worker_is_prepared_once_and_ends_with_its_group(stand_in, tmp_path: Path) -> None:
  pool = runner._Pool(tmp_path)
  pool.enter("a")
  worker = stand_in()
  pool._workers["one"] = worker
  assert pool.start("one", ["nobody"], {}) is worker
  facts = pool.prepared("one", worker, works=["min"])
  assert facts["compile_s"] == 2.0 and pool.prepared("one", worker, works=["max"]) is facts
  pool.enter("a")
  assert pool.start("one", ["nobody"], {}) is worker
  pool.enter("b")
  assert worker._process.returncode is not None
  assert pool._workers == {} == pool._facts


def test_a_worker_that_cannot_be_prepared_is_not_asked_again(stand_in, tmp_path: Path) -> None:
  pool = runner._Pool(tmp_path)
  worker = stand_in()
  pool._workers["one"] = worker
  with pytest.raises(WorkerError, match="TypeError") as first:
    pool.prepared("one", worker)
  assert "one" not in pool._workers
  with pytest.raises(WorkerError) as second:
    pool.prepared("one", worker, works=["min"])
  assert str(second.value) == str(first.value)


def test_logs_are_named_after_workers(tmp_path: Path) -> None:
  pool = runner._Pool(tmp_path)
  worker = pool.start("cost/demo", [sys.executable, "-c", "raise SystemExit('last words')"], {})
  with pytest.raises(WorkerError, match="last words"):
    worker.ask("info")
  assert "last words" in (tmp_path / "cost-demo.log").read_text()
  pool.stop()


def test_failures_are_ours_alone() -> None:
  report = {name: [] for name in plan.SECTIONS[1:]}
  ours = {"framework": "jax", "reason": "no luck"}
  report["rows"] = [ours, {"framework": "torch", "reason": "no luck"}, {"framework": "jax"}]
  section = plan.SECTIONS[-1]
  report[section] = [{"reason": "too large"}, {"reason": ""}]
  assert runner.failures(report) == [ours, {"reason": "too large"}]


def test_rows_show_no_seconds_of_the_worker() -> None:
  answer = {"round_s": 1.0, "cpu_seconds": 2.0, "idle_cpu_seconds": 3.0}
  assert runner._without_cpu(answer) == {"round_s": 1.0}


class _Answering:
  """In place of a worker: answers by name, and keeps what it was asked."""

  def __init__(self, **answers: dict[str, Any]):
    self._answers, self.asked = answers, []

  def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
    self.asked.append((do, arguments))
    return self._answers[do]

  def stop(self) -> None: ...


def _info(backend: str, devices: str) -> dict[str, Any]:
  hardware = {"backend": backend, "devices": devices, "processor": "P", "cores": "4"}
  return {"hardware": hardware, "versions": {}, "threads": 4}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
  """`bench(ours, theirs, name)`: a benchmark of a config, whose workers are these."""

  def make(ours: _Answering, theirs: _Answering, name: str = "gpu", **peers: Any) -> runner._Bench:
    monkeypatch.setattr(runner._Bench, "_jax", lambda self, name, **environment: ours)
    monkeypatch.setattr(runner._Bench, "_torch", lambda self, name: theirs)
    config = _cli.get_config("benchmark", name)
    config.peers.update(peers)
    return runner._Bench(config, tmp_path, sys.executable)

  return make


_CARD = {"version": "2", "diffusers": "3", "threads": 4, "gpu": "NVIDIA Card"}
_RATES = {"gflops": {"bfloat16": 700.0, "float32": 300.0, "float32/tf32": 350.0}}


def test_peers_run_on_the_same_gpu(bench) -> None:
  ours = _Answering(info=_info("gpu", "1 x NVIDIA Card"), matmul=_RATES, copy={"gbs": 2800.0})
  libraries = {"torch CUDA": "13.0"}
  theirs = _Answering(info=_CARD | {"libraries": libraries}, matmul=_RATES, copy={"gbs": 2900.0})
  made = bench(ours, theirs)
  assert all(arguments["device"] == "cuda" for _, arguments in theirs.asked)
  header = made.report["header"]
  assert header["copy_gbs"] == {"jax": 2800.0, "torch": 2900.0}
  assert header["versions"]["torch CUDA"] == "13.0" and header["versions"]["torch"] == "2"
  assert made._peak({"dtype": "bfloat16", "precision": "tf32"}) == 700.0
  assert made._peak({"dtype": "float32", "precision": "tf32"}) == 350.0
  assert made._peak({"dtype": "float32"}) == 300.0
  assert made._peak({"dtype": "float32", "precision": "highest"}) is None
  # The races of a chosen order are all that there is.
  assert made.report["rows"] == []


@pytest.mark.parametrize(
  ("backend", "devices", "card", "message"),
  [
    ("gpu", "1 x NVIDIA Card", "NVIDIA Other", "another device, NVIDIA Other, than jax: 1 x NV"),
    ("cpu", "1 x cpu", "NVIDIA Card", "this config is for backend 'gpu', .* 1 x cpu"),
    ("tpu", "4 x TPU v5", "NVIDIA Card", "this config is for backend 'gpu'"),
  ],
)
def test_other_devices_are_refused(bench, backend, devices, card, message) -> None:
  ours, theirs = _Answering(info=_info(backend, devices)), _Answering(info=_CARD | {"gpu": card})
  with pytest.raises(ConfigError, match=message):
    bench(ours, theirs)


def test_peers_do_not_run_on_tpus(bench) -> None:
  ours = _Answering(info=_info("tpu", "4 x TPU v5"))
  with pytest.raises(ConfigError, match="contestants run on a CPU or a GPU"):
    bench(ours, _Answering(), "default")


def _ready(bench) -> runner._Bench:
  ours = _Answering(info=_info("gpu", "1 x C"), matmul=_RATES, copy={"gbs": 1.0})
  return bench(ours, _Answering(), torch=())


def test_a_race_for_which_there_is_no_time_is_left_out(bench, monkeypatch) -> None:
  made, done = _ready(bench), []
  monkeypatch.setattr(made, "do", lambda task, left: done.append(task.key))
  first, second, *_ = tasks = plan.tasks(made.config)
  assert first.spec["prepare_s"] + first.spec["race_s"] == 75 == made._expected(first)
  made.pool.deadline = time.monotonic() + 60
  assert re.fullmatch("no time left: it takes about 75 s of (60|59)", made.attempt(first, tasks))
  # Its worker is prepared for the others of the group too.
  made._begun.add(made._round(first))
  assert made._expected(second) == 5 and made.attempt(second, tasks) == ""
  assert made._expected(tasks[3]) > 5
  made.pool.deadline = time.monotonic() - 1
  assert made.attempt(second, tasks).endswith("of 0")
  assert done == [second.key]


def test_a_race_that_takes_too_long_is_given_up(bench, monkeypatch) -> None:
  made = _ready(bench)
  (task, *_) = tasks = plan.tasks(made.config)

  def late(task, left):
    raise OutOfTime("no time left for 'prepare'")

  monkeypatch.setattr(made, "do", late)
  assert made.attempt(task, tasks) == "no time left for 'prepare'"


def test_what_is_left_out_is_neither_done_nor_a_failure(bench, tmp_path, monkeypatch) -> None:
  made = _ready(bench)
  monkeypatch.setattr(runner, "_Bench", lambda *_: made)
  monkeypatch.setattr(
    made, "attempt", lambda task, left: "" if task.spec["race"] == "sd" else "no time left"
  )
  # Pools of stand-ins have nothing to stop.
  report = runner.run(made.config, tmp_path, peer_python="", only="cifar,sd", progress=False)
  assert report["done"] == ["sd/max/sd15/b8/bfloat16"]
  assert [row["reason"] for row in report["left_out"]] == ["no time left"] * 3
  assert runner.failures(report) == []
  assert "Left out" in (tmp_path / "bench.md").read_text()
  # It is measured by the next call, and then no longer listed.
  monkeypatch.setattr(made, "attempt", lambda task, left: "")
  report = runner.run(made.config, tmp_path, peer_python="", only="cifar,sd", progress=False)
  assert len(report["done"]) == 4 and "left_out" not in report


def test_workers_get_the_flags_and_the_cache_of_their_race(
  bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  made = _ready(bench)
  monkeypatch.undo()
  monkeypatch.setenv("XLA_FLAGS", "--one=1")
  started = {}
  monkeypatch.setattr(
    made.pool, "start", lambda name, command, environment: started.update({name: environment})
  )
  by_race = {task.spec["race"]: task for task in plan.tasks(made.config)}
  for name in ("cifar_ours", "no_command_buffers"):
    (ours,) = plan.contestants(made.config, by_race[name])
    made._started(ours, by_race[name])
  plain, flagged = started.values()
  assert "XLA_FLAGS" not in plain
  assert flagged["XLA_FLAGS"] == "--one=1 --xla_gpu_enable_command_buffer="
  for environment in (plain, flagged):
    assert environment["JAX_ENABLE_COMPILATION_CACHE"] == "true"
    assert environment["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "xla")
    assert environment["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
  started.clear()
  made.config.cache = False
  made._started(ours, by_race["cifar_ours"])
  assert [e["JAX_ENABLE_COMPILATION_CACHE"] for e in started.values()] == ["false"]
