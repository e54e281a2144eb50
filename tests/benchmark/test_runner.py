"""The benchmark's own accounts: workers that are kept, rows that failed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from udp_jax.benchmark import plan, runner
from udp_jax.benchmark.worker import WorkerError


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
