"""Runs the queue: one job at a time, each as a program of its own, which can be gone on with.

A run holds a lock on its job's folder (`flock`, inherited), so that a page that was killed and
started again finds a run that is still at work, waits for it, and then runs the same command: that
one goes on where the other ended, or says that nothing is left to do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from udp_jax.data import marks, naming
from udp_jax.page import jobs as jobs_lib
from udp_jax.page.jobs import Job, Jobs

try:
  import fcntl
except ImportError:  # Not a POSIX system: runs of a killed page are not waited for.
  fcntl = None  # type: ignore[assignment]

# Seconds after which a run that was asked to stop is asked again, and then killed. It loses what
# came after its last checkpoint, and no file.
_ASK_AGAIN_S, _KILL_S = 5.0, 15.0
_POLL_S = 0.2


class Runner:
  """A thread that works on the queue.

  Args:
    jobs: the jobs.
    commands: job -> command lines, run one after the other; each may be run again.
  """

  def __init__(self, jobs: Jobs, commands: Callable[[Job], Sequence[Sequence[str]]]):
    self._jobs, self._commands = jobs, commands
    self._wake, self._closing = threading.Event(), threading.Event()
    self._stops: set[str] = set()
    self._thread = threading.Thread(target=self._work, name="runner", daemon=True)

  def start(self) -> None:
    """Starts the thread; it first goes on with what an earlier page left."""
    self._jobs.delete_old_drafts()
    self._thread.start()

  def wake(self) -> None:
    """Says that the queue has changed."""
    self._wake.set()

  def stop(self, job: Job) -> None:
    """Stops a job that runs or waits. It keeps what is finished."""
    if not self._jobs.change(job, jobs_lib.STOPPED, only=(jobs_lib.QUEUED,), message=_STOPPED):
      self._stops.add(job.id)
    self.wake()

  def close(self) -> None:
    """Stops the run, if any, and the thread; the next page goes on with the job."""
    self._closing.set()
    self.wake()
    if self._thread.is_alive():
      self._thread.join(_KILL_S + 10)

  def _work(self) -> None:
    while not self._closing.is_set():
      self._wake.clear()
      queue = self._jobs.queue()
      if not queue:
        self._wake.wait(5.0)
        continue
      job = queue[0]
      try:
        self._run(job)
      except Exception as error:  # The page lives on, and says what happened.
        text = naming.printable(f"error: {type(error).__name__}: {error}")
        self._jobs.change(job, jobs_lib.FAILED, only=jobs_lib.WAITING, message=text)
      finally:
        self._stops.discard(job.id)

  def _run(self, job: Job) -> None:
    """Runs a job to its end, to a stop, or until the page closes."""
    if not self._jobs.change(job, jobs_lib.RUNNING, only=jobs_lib.WAITING):
      return
    started = time.monotonic()
    code = 0
    for number, command in enumerate(self._commands(job)):
      code = self._run_one(job, command, first=number == 0)
      if code or self._should_stop(job):
        break
    seconds = job.state().seconds + time.monotonic() - started
    if job.id in self._stops:
      self._end(job, jobs_lib.STOPPED, seconds=seconds, message=_STOPPED)
    elif self._closing.is_set():
      self._end(job, jobs_lib.RUNNING, seconds=seconds)
    elif code:
      self._end(job, jobs_lib.FAILED, seconds=seconds, message=failure(job, code))
    elif _is_complete(job):
      self._end(job, jobs_lib.FINISHED, seconds=seconds, message="")
    else:
      self._end(job, jobs_lib.STOPPED, seconds=seconds, message=_STOPPED)

  def _end(self, job: Job, status: str, **more: Any) -> None:
    self._jobs.change(job, status, only=(jobs_lib.RUNNING,), **more)

  def _should_stop(self, job: Job) -> bool:
    return job.id in self._stops or self._closing.is_set()

  def _run_one(self, job: Job, command: Sequence[str], *, first: bool) -> int:
    """Runs one command; returns its exit code, negative for a signal."""
    lock = self._lock(job)
    if lock is None:  # Stopped while another run was still there.
      return 0
    mode = "wb" if first else "ab"
    try:
      with open(job.log, mode) as log, open(job.said, mode) as said:
        process = subprocess.Popen(
          list(command),
          stdin=subprocess.DEVNULL,
          stdout=said,
          stderr=log,
          start_new_session=True,  # Ctrl-C is for the page, which then asks the run to stop.
          pass_fds=(lock,) if lock >= 0 else (),
        )
      (job.folder / "pid").write_text(str(process.pid))
    finally:
      if lock >= 0:
        os.close(lock)  # The run has it.
    ask = _Asking(process.pid)
    while process.poll() is None:
      if self._should_stop(job):
        ask()
      time.sleep(_POLL_S)
    return process.returncode

  def _lock(self, job: Job) -> int | None:
    """Locks a job for a run, once an earlier run has ended; -1 without locks, None if stopped."""
    if fcntl is None:
      return -1
    descriptor = os.open(job.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    ask: _Asking | None = None
    while True:
      try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
      except BlockingIOError:
        if self._should_stop(job):
          ask = ask or _Asking(_pid(job))
          ask()
      except OSError:  # A file system without locks.
        os.close(descriptor)
        return -1
      if self._closing.is_set():
        os.close(descriptor)
        return None
      time.sleep(_POLL_S)


_STOPPED = "What is finished is kept; press Go on to continue."


class _Asking:
  """Asks a process to stop: kindly, again, and for good."""

  def __init__(self, pid: int | None):
    self._pid = pid
    self._start = time.monotonic()
    self._sent = 0

  def __call__(self) -> None:
    if self._pid is None:
      return
    past = time.monotonic() - self._start
    kill = getattr(signal, "SIGKILL", signal.SIGTERM)
    plan = ((0.0, signal.SIGTERM), (_ASK_AGAIN_S, signal.SIGTERM), (_KILL_S, kill))
    if self._sent < len(plan) and past >= plan[self._sent][0]:
      with contextlib.suppress(OSError):
        os.kill(self._pid, plan[self._sent][1])
      self._sent += 1


def _pid(job: Job) -> int | None:
  with contextlib.suppress(OSError, ValueError):
    return int((job.folder / "pid").read_text())
  return None


def _is_complete(job: Job) -> bool:
  return job.settings().get("kind") == jobs_lib.VIEW or marks.is_complete(job.output)


def failure(job: Job, code: int) -> str:
  """Returns the line to show for a failed run: its own error line where it said one."""
  lines = [line.strip() for line in job.tail().replace("\r", "\n").splitlines() if line.strip()]
  own = [line for line in lines if line.startswith("error: ")]
  if own:
    return naming.printable(own[-1])
  if code == -9:
    return (
      "error: the run was killed, as systems do when memory runs out; close other programs, or "
      "give smaller pictures, then go on"
    )
  last = f": {lines[-1]}" if lines else ""
  return naming.printable(f"error: the run ended with exit code {code}{last}")
