"""The benchmark's end of the pipe: starts a worker, sends requests, waits, stops it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from udp_jax.runtime.files import output_errors


class WorkerError(Exception):
  """A worker answered with an error, took too long, or died. The message says which and why."""


class OutOfTime(Exception):
  """The time of the whole benchmark ended before a worker answered; no fault of the worker's."""


class Worker:
  """A process that holds one contestant's model and answers requests.

  It has its own thread pools and memory. Output of libraries goes to a log file.
  """

  def __init__(
    self,
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    deadline: float = math.inf,
  ):
    """Starts `command`, which must speak the protocol of `serve`.

    Args:
      command: program and arguments.
      log: file to which the output of the process is appended.
      environment: variables added to this process's own.
      deadline: time on `time.monotonic`'s clock after which no answer is waited for.

    Raises:
      OutputError: the log cannot be written.
      WorkerError: the program does not exist.
    """
    self._log, self._deadline = log, deadline
    with output_errors(log):
      log.parent.mkdir(parents=True, exist_ok=True)
      stderr = log.open("ab")
    try:
      self._process = subprocess.Popen(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, **(environment or {})},
      )
    except OSError as error:
      raise WorkerError(f"cannot start {command[0]}: {error.strerror}") from error
    finally:
      stderr.close()
    self._pending = b""

  def ask(self, do: str, *, timeout: float = 900.0, **arguments: Any) -> dict[str, Any]:
    """Sends one request and waits for its answer.

    Args:
      do: name of the handler.
      timeout: seconds to wait for the answer.
      **arguments: arguments of the handler, as JSON values.

    Raises:
      OutOfTime: the deadline came first; this stops the process.
      WorkerError: the handler or process failed, or timed out; a timeout also stops the process.
    """
    line = json.dumps({"do": do, **arguments}) + "\n"
    assert self._process.stdin is not None
    try:
      self._process.stdin.write(line.encode())
      self._process.stdin.flush()
    except OSError:
      raise WorkerError(self._obituary(do)) from None
    answer = json.loads(self._read_line(do, timeout))
    if "error" in answer:
      raise WorkerError(answer["error"])
    return answer

  def close(self) -> None:
    """Closes the pipes, at which the process ends by itself; does not wait for that."""
    for pipe in (self._process.stdin, self._process.stdout):
      with contextlib.suppress(OSError):
        if pipe is not None:
          pipe.close()

  def stop(self, patience: float = 2.0) -> None:
    """Ends the process, unless it has ended; kills it after `patience` seconds."""
    self.close()
    try:
      self._process.wait(timeout=patience)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()

  def _read_line(self, do: str, timeout: float) -> bytes:
    assert self._process.stdout is not None
    handle = self._process.stdout.fileno()
    deadline = min(time.monotonic() + timeout, self._deadline)
    while b"\n" not in self._pending:
      left = deadline - time.monotonic()
      if left <= 0 or not select.select([handle], [], [], left)[0]:
        self._process.kill()
        if deadline == self._deadline:
          raise OutOfTime(f"no time left for {do!r}")
        raise WorkerError(f"no answer to {do!r} within {timeout:g} s")
      chunk = os.read(handle, 65536)
      if not chunk:
        raise WorkerError(self._obituary(do))
      self._pending += chunk
    line, _, self._pending = self._pending.partition(b"\n")
    return line

  def _obituary(self, do: str) -> str:
    code = self._process.wait()
    how = f"was killed by signal {-code} (out of memory?)" if code == -9 else f"ended with {code}"
    try:
      last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
    except OSError:
      last = []
    return f"the worker {how} during {do!r}" + "".join(f": {line}" for line in last)
