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
from udp_jax.errors import ConfigError, MissingDataError


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

  def __init__(self, **answers: dict[str, Any] | Exception):
    self._answers, self.asked = answers, []

  def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
    self.asked.append((do, arguments))
    if isinstance(self._answers[do], Exception):
      raise self._answers[do]
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
    ("cpu", "1 x cpu", "NVIDIA Card", "this config is for backend 'gpu', .* 1 x cpu"),
    ("tpu", "4 x TPU v5", "NVIDIA Card", "this config is for backend 'gpu'"),
  ],
)
def test_other_devices_are_refused(bench, backend, devices, card, message) -> None:
  ours, theirs = _Answering(info=_info(backend, devices)), _Answering(info=_CARD | {"gpu": card})
  with pytest.raises(ConfigError, match=message):
    bench(ours, theirs)


_RUNS: dict[str, Any] = {
  "prepare": {"compile_s": 9.0, "warmup_s": 1.0, "compile_peak_rss_mib": 5.0, "tflop": {}},
  "memory": {"peak_rss_mib": 4.0, "peak_of": "step"},
  "run": {"seconds": 0.5, "cpu_seconds": 0.1, "idle_cpu_seconds": 0.0},
}


def _ours(**answers: Any) -> _Answering:
  known = {"info": _info("gpu", "1 x NVIDIA Card"), "matmul": _RATES, "copy": {"gbs": 2800.0}}
  return _Answering(**known | _RUNS | answers)


def _measured(made: runner._Bench, monkeypatch: pytest.MonkeyPatch, only: str) -> dict[str, Any]:
  """The report of these races, from workers that answer at once."""
  monkeypatch.setattr(runner, "_Bench", lambda *_: made)
  made.config.races.update({"seconds": 0.0, "pause": 0.0})
  return runner.run(made.config, made.workdir, peer_python="", only=only, progress=False)


@pytest.mark.parametrize(
  ("said", "reason"),
  [
    (WorkerError("the worker ended with 1: no module 'x'"), "no module 'x'.*--peer_python=PATH"),
    (WorkerError("no answer to 'info' within 90 s"), "no answer to 'info'"),
    (_CARD | {"gpu": "NVIDIA Other"}, "another device, NVIDIA Other, than jax: 1 x NVIDIA Card"),
  ],
)
def test_races_with_an_order_go_on_without_pytorch(bench, monkeypatch, said, reason) -> None:
  theirs = _Answering(info=said)
  made = bench(_ours(), theirs)
  # It is not waited for until the end, and asked for nothing more.
  assert theirs.asked == [("info", {"device": "cuda", "timeout": 90.0})]
  report = _measured(made, monkeypatch, "cifar,sd")
  assert len(theirs.asked) == 1
  ours, peers = ([r for r in report["rows"] if r["framework"] == f] for f in ("jax", "torch"))
  assert [row["median_s"] for row in ours] == [0.5] * 4
  assert all(row["reason"] is None and row["ratio"] is None for row in ours)
  assert [row["race"] for row in peers] == ["cifar"] * 3 + ["sd"]
  for row in peers:
    assert re.match(f"without PyTorch: .*{reason}", row["reason"]) and row["median_s"] is None
  assert re.search(reason, report["header"]["without_torch"])
  assert "torch" not in report["header"]["matmul_gflops"]
  assert len(report["done"]) == 4 and runner.failures(report) == []
  assert "- without PyTorch: " in (made.workdir / "bench.md").read_text()


def test_a_peer_that_cannot_be_started_leaves_our_rows(bench, monkeypatch, tmp_path: Path) -> None:
  made = bench(_ours(), _Answering(info=_CARD, matmul=_RATES, copy={"gbs": 1.0}))
  monkeypatch.undo()
  monkeypatch.setattr(runner._Bench, "_jax", lambda self, name, **environment: _ours())
  broken = tmp_path / "python"
  broken.write_text("#!/bin/sh\necho 'ImportError: libcudart' >&2\nexit 1\n")
  broken.chmod(0o755)
  for name, reason in ((str(broken), "ImportError: libcudart"), ("/nowhere/python", "not there")):
    folder = tmp_path / name.replace("/", "_")
    report = runner.run(made.config, folder, peer_python=name, only="sd", progress=False)
    ours, peer = report["rows"]
    assert ours["median_s"] == 0.5 and peer["median_s"] is None
    assert reason in peer["reason"] and reason in report["header"]["without_torch"]
  # The other races want their peers.
  config = _cli.get_config("benchmark", "quick")
  monkeypatch.setattr(
    runner._Bench, "_jax", lambda self, name, **environment: _ours(info=_info("cpu", "1 x cpu"))
  )
  for name, reason in ((str(broken), "ImportError: libcudart"), ("/nowhere/python", "not there")):
    with pytest.raises(MissingDataError, match=f"{reason}.*make bench"):
      runner.run(config, tmp_path / "quick", peer_python=name, progress=False)


def test_a_table_without_pytorch_is_not_continued_with_it(bench) -> None:
  theirs = _Answering(info=_CARD, matmul=_RATES, copy={"gbs": 1.0})
  bench(_ours(), theirs).save()
  missing = WorkerError("no such module")
  with pytest.raises(ConfigError, match=r"another versions.* \(now without PyTorch: .*no such mod"):
    bench(_ours(), _Answering(info=missing))


def test_a_rate_that_cannot_be_measured_ends_nothing(bench, monkeypatch) -> None:
  lost = WorkerError("CUDA out of memory")
  # Of a race without an order it does.
  theirs = _Answering(info=_CARD | {"gpu": "cpu"}, matmul=lost)
  with pytest.raises(WorkerError, match="out of memory"):
    bench(_ours(info=_info("cpu", "1 x cpu")), theirs, "quick")
  theirs = _Answering(info=_CARD, matmul=_RATES, copy=lost, **_RUNS)
  made = bench(_ours(matmul=WorkerError("INTERNAL: autotuning")), theirs)
  header = made.report["header"]
  assert header["unmeasured"] == {
    "matmul of jax": "INTERNAL: autotuning",
    "copy of torch": "CUDA out of memory",
  }
  assert header["matmul_gflops"] == {"torch": _RATES["gflops"]}
  assert header["copy_gbs"] == {"jax": 2800.0} and "without_torch" not in header
  ours, peer = _measured(made, monkeypatch, "sd")["rows"]
  assert ours["ratio"] == 1.0 and peer["median_s"] == 0.5


def test_only_workers_of_the_races_at_hand_are_started(bench, monkeypatch) -> None:
  made = bench(_ours(), _Answering(info=_CARD, matmul=_RATES, copy={"gbs": 1.0}))
  started: list[str] = []
  works: dict[str, Any] = {}
  monkeypatch.setattr(made.pool, "start", lambda name, *_: started.append(name) or _ours())
  monkeypatch.setattr(runner._Bench, "_jax", lambda self, name, **_: self.pool.start(name))
  monkeypatch.setattr(runner._Bench, "_torch", lambda self, name: self.pool.start(name))
  monkeypatch.setattr(
    made.pool,
    "prepared",
    lambda name, worker, **spec: works.update({name: spec["works"]}) or _RUNS["prepare"],
  )
  made.config.races.update({"seconds": 0.0, "pause": 0.0})
  chosen = plan.tasks(made.config)
  seen: dict[str, tuple[set[str], dict[str, Any]]] = {}
  for task in chosen[:9]:
    started.clear()
    works.clear()
    made.do(task, chosen)
    seen.setdefault(task.spec["race"], (set(started), dict(works)))
  kinds = {
    race: {name.split("_ddpm")[0].split("_sd15")[0] for name in s} for race, (s, _) in seen.items()
  }
  # PyTorch imports its libraries while ours compile, but for the next races only.
  assert kinds["cifar_ours"] == {"jax_round_12", "torch_channels_last"}
  assert kinds["sd_ours"] == kinds["sd"] == {"jax_round_6", "torch_channels_last"}
  assert kinds["compile"] == {"jax_round_12", "torch_compile"}
  assert [*seen["cifar_ours"][1].values()] == [["round", "max", "min"]]
  # The other steps have been raced by then.
  assert [*seen["compile"][1].values()] == [["round"]] * 2


def test_workers_end_at_the_same_time(stand_in, tmp_path: Path, monkeypatch) -> None:
  monkeypatch.setattr(runner, "_PATIENCE", 0.5)
  pool = runner._Pool(tmp_path)
  for name in "abcd":
    pool._workers[name] = worker = stand_in()
    worker.ask("run", work="min")
    assert worker._process.stdin is not None
    worker._process.stdin.write(b'{"do": "sleep", "seconds": 60}\n')
  workers = list(pool._workers.values())
  started = time.monotonic()
  pool.stop()
  assert time.monotonic() - started < 1.5
  assert {worker._process.returncode for worker in workers} == {-9}


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
