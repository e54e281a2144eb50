"""The benchmark's end of the pipe: start a worker, ask, wait, stop."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from udp_jax.data.files import output_errors


class WorkerError(Exception):
  """A worker answered with an error, took too long, or died. The message says which and why."""


class Worker:
  """A process that holds one contestant's model and does what it is asked.

  Its thread pools and memory are its own. Libraries' output goes to a log file.
  """

  def __init__(
    self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
  ):
    """Starts `command`, which must speak the protocol of `serve`.

    Args:
      command: program and arguments.
      log: file for what the process prints, appended to.
      environment: variables on top of this process's own.

    Raises:
      OutputError: the log cannot be written.
      WorkerError: there is no such program.
    """
    self._log = log
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
      timeout: seconds.
      **arguments: of the handler, anything that JSON holds.

    Raises:
      WorkerError: the handler failed, or the process did; after a timeout it is stopped.
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

  def stop(self) -> None:
    """Ends the process; does nothing when it has ended."""
    for pipe in (self._process.stdin, self._process.stdout):
      with contextlib.suppress(OSError):
        if pipe is not None:
          pipe.close()
    try:
      self._process.wait(timeout=2)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()

  def _read_line(self, do: str, timeout: float) -> bytes:
    assert self._process.stdout is not None
    handle = self._process.stdout.fileno()
    deadline = time.monotonic() + timeout
    while b"\n" not in self._pending:
      left = deadline - time.monotonic()
      if left <= 0 or not select.select([handle], [], [], left)[0]:
        self._process.kill()
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
