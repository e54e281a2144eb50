"""The pipe between the benchmark and its workers: answers, failures, deaths, silence."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from udp_jax.benchmark.worker import OutOfTime, Worker, WorkerError


def test_answers_pass_and_printing_does_not_disturb_them(stand_in, tmp_path: Path) -> None:
  worker = stand_in([0.25, 0.5])
  assert worker.ask("prepare", works=["max"])["tflop"] == {"max": 0.5}
  assert [worker.ask("run", work="max")["seconds"] for _ in range(3)] == [0.25, 0.5, 0.25]
  worker.stop()
  log = (tmp_path / "0.log").read_text()
  assert "a library that prints" in log and "below Python" in log


def test_cpu_time_is_that_of_the_request(stand_in) -> None:
  worker = stand_in()
  worker.ask("run", work="min")
  time.sleep(0.3)
  answer = worker.ask("spin", seconds=0.1)
  assert 0.1 <= answer["cpu_seconds"] < 5
  # It waited 0.3 s and burned nothing.
  assert 0 <= answer["idle_cpu_seconds"] < 0.1


def test_an_error_is_told_and_the_worker_goes_on(stand_in) -> None:
  worker = stand_in()
  with pytest.raises(WorkerError, match="ValueError: no such luck"):
    worker.ask("fail", message="no such\nluck")
  with pytest.raises(WorkerError, match="KeyError: 'unknown'"):
    worker.ask("unknown")
  assert worker.ask("run", work="min")["seconds"] == 1.0


def test_a_worker_that_dies_is_noticed_at_once(stand_in) -> None:
  worker = stand_in()
  with pytest.raises(WorkerError, match="the worker ended with 7 during 'die': last words"):
    worker.ask("die", code=7)
  with pytest.raises(WorkerError, match="ended with 7"):
    worker.ask("run", work="min")


def test_a_silent_worker_is_stopped(stand_in) -> None:
  worker = stand_in()
  worker.ask("run", work="min")
  with pytest.raises(WorkerError, match="no answer to 'sleep' within 0.2 s"):
    worker.ask("sleep", seconds=60, timeout=0.2)
  with pytest.raises(WorkerError, match="killed by signal 9"):
    worker.ask("run", work="min")


def test_the_end_of_the_benchmark_is_no_fault_of_the_worker(stand_in) -> None:
  worker = stand_in()
  worker.ask("run", work="min")
  worker._deadline = time.monotonic() + 0.2
  with pytest.raises(OutOfTime, match="no time left for 'sleep'"):
    worker.ask("sleep", seconds=60)
  # A shorter limit of its own still is one.
  worker = stand_in()
  worker._deadline = time.monotonic() + 60
  with pytest.raises(WorkerError, match="no answer to 'sleep' within 0.2 s"):
    worker.ask("sleep", seconds=60, timeout=0.2)


def test_no_such_program(tmp_path: Path) -> None:
  with pytest.raises(WorkerError, match="cannot start /nowhere/python: No such file"):
    Worker(["/nowhere/python"], tmp_path / "log")


def test_who_does_not_end_by_itself_is_killed(stand_in) -> None:
  worker = stand_in()
  worker.ask("run", work="min")
  assert worker._process.stdin is not None
  worker._process.stdin.write(b'{"do": "sleep", "seconds": 60}\n')
  worker.close()
  assert worker._process.poll() is None
  started = time.monotonic()
  worker.stop(patience=0.1)
  assert worker._process.returncode == -9 and time.monotonic() - started < 5


def test_stop_ends_the_process(stand_in) -> None:
  worker = stand_in()
  worker.ask("run", work="min")
  worker.stop()
  assert worker._process.returncode is not None
  worker.stop()
