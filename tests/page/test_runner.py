"""The queue's thread with programs of a few lines in the place of `experiments.protect`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from udp_jax.data import marks
from udp_jax.page import jobs as jobs_lib
from udp_jax.page import runner as runner_lib
from udp_jax.page.jobs import Job, Jobs
from udp_jax.page.runner import Runner

# Writes one number a tenth of a second, goes on after the last one, and ends with a manifest.
_COUNT = """
import json, pathlib, signal, sys, time
out = pathlib.Path(sys.argv[1]); out.mkdir(exist_ok=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
if len(sys.argv) > 2: sys.exit(sys.argv[2])
done = len(list(out.glob("*.txt")))
for number in range(done, 8):
  time.sleep(0.1)
  (out / f"{number}.txt").write_text(str(number))
  with open(out.parent / "order", "a") as order: order.write(f"{number}\\n")
made = {"format": FORMAT, "complete": True, "images": [{"file": "0.txt"}]}
(out / "manifest.json").write_text(json.dumps(made))
""".replace("FORMAT", repr(marks.FORMAT))


def command(job: Job, *more: str) -> list[str]:
  return [sys.executable, "-c", _COUNT, str(job.output), *more]


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
  end = time.monotonic() + seconds
  while not holds():
    assert time.monotonic() < end, "waited in vain"
    time.sleep(0.02)


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
  return Jobs(tmp_path)


@pytest.fixture
def start(jobs: Jobs) -> Iterator[Callable[..., Runner]]:
  started: list[Runner] = []

  def make(commands: Callable[[Job], list[list[str]]] = lambda job: [command(job)]) -> Runner:
    runner = Runner(jobs, commands)
    runner.start()
    started.append(runner)
    return runner

  yield make
  for runner in started:
    runner.close()


def submitted(jobs: Jobs) -> Job:
  job = jobs.create()
  jobs.submit(job, {})
  return job


def test_one_job_at_a_time_in_order(jobs: Jobs, start: Callable[..., Runner]) -> None:
  one, two = submitted(jobs), submitted(jobs)
  start()
  until(lambda: (one.output / "0.txt").exists())
  assert two.state().status == jobs_lib.QUEUED and not two.output.exists()
  until(lambda: two.state().status == jobs_lib.FINISHED)
  assert one.state().status == jobs_lib.FINISHED and one.state().seconds > 0.5


def test_a_stopped_job_goes_on_where_it_was(jobs: Jobs, start: Callable[..., Runner]) -> None:
  runner, job, waiting = start(), submitted(jobs), submitted(jobs)
  runner.wake()
  runner.stop(waiting)
  assert waiting.state().status == jobs_lib.STOPPED
  until(lambda: (job.output / "2.txt").exists())
  runner.stop(job)
  until(lambda: job.state().status == jobs_lib.STOPPED)
  assert not (job.output / "manifest.json").exists()
  jobs.go_on(job)
  runner.wake()
  until(lambda: job.state().status == jobs_lib.FINISHED)
  assert (job.folder / "order").read_text().split() == [str(n) for n in range(8)]


def test_a_failure_says_the_runs_own_line(jobs: Jobs, start: Callable[..., Runner]) -> None:
  job = submitted(jobs)
  start(lambda job: [command(job, "note\nerror: no such model; give another\rlast")])
  until(lambda: job.state().status == jobs_lib.FAILED)
  assert job.state().message == "error: no such model; give another"


def test_a_run_that_was_killed_says_so(jobs: Jobs, start: Callable[..., Runner]) -> None:
  job = submitted(jobs)
  start(lambda job: [[sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]])
  until(lambda: job.state().status == jobs_lib.FAILED)
  assert "memory" in job.state().message


def test_a_closing_page_stops_the_run_and_the_next_goes_on(
  jobs: Jobs, start: Callable[..., Runner]
) -> None:
  job = submitted(jobs)
  first = start()
  until(lambda: (job.output / "2.txt").exists())
  first.close()
  assert job.state().status == jobs_lib.RUNNING
  assert not (job.output / "manifest.json").exists()
  start()
  until(lambda: job.state().status == jobs_lib.FINISHED)
  assert (job.folder / "order").read_text().split() == [str(n) for n in range(8)]


def test_the_next_page_waits_for_the_run_of_a_killed_one(
  jobs: Jobs, start: Callable[..., Runner], tmp_path: Path
) -> None:
  job = submitted(jobs)
  page = (
    "import sys, time, pathlib\n"
    "from udp_jax.page.jobs import Jobs\n"
    "from udp_jax.page.runner import Runner\n"
    f"code = {_COUNT!r}\n"
    "jobs = Jobs(pathlib.Path(sys.argv[1]))\n"
    "Runner(jobs, lambda job: [[sys.executable, '-c', code, str(job.output)]]).start()\n"
    "time.sleep(60)\n"
  )
  killed = subprocess.Popen([sys.executable, "-c", page, str(tmp_path)])
  until(lambda: (job.output / "1.txt").exists())
  killed.send_signal(signal.SIGKILL)
  killed.wait()
  assert job.state().status == jobs_lib.RUNNING
  start()
  until(lambda: job.state().status == jobs_lib.FINISHED)
  # No number twice: the second run began after the first had ended.
  assert (job.folder / "order").read_text().split() == [str(n) for n in range(8)]


def test_a_deaf_run_is_killed(
  jobs: Jobs, start: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(runner_lib, "_ASK_AGAIN_S", 0.2)
  monkeypatch.setattr(runner_lib, "_KILL_S", 0.5)
  deaf = "import signal, time, pathlib, sys\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
  deaf += "pathlib.Path(sys.argv[1]).touch()\ntime.sleep(60)"
  runner = start(lambda job: [[sys.executable, "-c", deaf, str(job.folder / "deaf")]])
  job = submitted(jobs)
  runner.wake()
  until(lambda: (job.folder / "deaf").exists())
  runner.stop(job)
  until(lambda: job.state().status == jobs_lib.STOPPED, seconds=5)
  with pytest.raises(ProcessLookupError):
    os.kill(int((job.folder / "pid").read_text()), 0)


def test_a_queue_that_cannot_run_does_not_stop(jobs: Jobs, start: Callable[..., Runner]) -> None:
  broken, good = submitted(jobs), submitted(jobs)

  def commands(job: Job) -> list[list[str]]:
    return [["/no/such/program"]] if job.id == broken.id else [command(job)]

  start(commands)
  until(lambda: good.state().status == jobs_lib.FINISHED)
  assert broken.state().status == jobs_lib.FAILED
  assert "FileNotFoundError" in broken.state().message
