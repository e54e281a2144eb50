"""How processes of one run end when one of them does: codes and messages, without any model."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Whole runs of several processes: `make test_slow`.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = '''
"""A stand-in for an entry point."""
import sys, time
from experiments import _cli
from udp_jax.runtime import processes
from udp_jax.errors import OutputError

def fail():
  raise OutputError("the disk is full")


def main(argv):
  processes.barrier("begin")
  print("begun", file=sys.stderr, flush=True)
  second = processes.index() == 1
  if WHAT == "error" and second:
    fail()
  if WHAT == "bug" and second:
    raise RuntimeError("a bug")
  if WHAT == "error in 0":
    processes.from_main(fail, "x")
  if WHAT != "fine":
    time.sleep(60)
  print("done")


_cli.run(main, resumable=True)
'''


def _run(what: str, number: int | None = None) -> list[tuple[int, str, str]]:
  """[(exit code, stdout, stderr)] of two processes; `number` is sent to the second one."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
  running = [
    subprocess.Popen(
      [sys.executable, "-c", f"WHAT = {what!r}\n{PROGRAM}"]
      + [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={i}"],
      cwd=ROOT,
      env=os.environ | {"JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  said = ["", ""]
  if number is not None:
    for i, process in enumerate(running):
      while "begun" not in said[i]:
        line = process.stderr.readline()
        assert line, said[i]
        said[i] += line
    running[1].send_signal(number)
  start = time.monotonic()
  ends = [process.communicate(timeout=120) for process in running]
  if number is not None:
    assert time.monotonic() - start < 30
  return [
    (process.returncode, out, before + err)
    for process, (out, err), before in zip(running, ends, said)
  ]


def _lines(said: str) -> list[str]:
  return [line for line in said.splitlines() if line and line != "begun"]


def test_process_0_alone_speaks() -> None:
  assert [(code, out, _lines(err)) for code, out, err in _run("fine")] == [
    (0, "done\n", []),
    (0, "", []),
  ]


def test_an_error_of_one_ends_the_others() -> None:
  first, second = _run("error")
  assert (second[0], _lines(second[2])) == (4, ["error: the disk is full"])
  assert (first[0], _lines(first[2])) == (6, ["error: process 1 of 2 failed: the disk is full"])


def test_an_error_of_process_0_in_a_common_step_is_everyones() -> None:
  for code, _, said in _run("error in 0"):
    assert (code, _lines(said)) == (4, ["error: the disk is full"])


def test_a_bug_of_one_keeps_its_traceback() -> None:
  first, second = _run("bug")
  assert second[0] == 1 and "Traceback" in second[2] and "RuntimeError: a bug" in second[2]
  assert (first[0], _lines(first[2])) == (
    6,
    ["error: process 1 of 2 failed: RuntimeError: a bug"],
  )


@pytest.mark.parametrize(
  ("number", "codes"), [(signal.SIGTERM, [0, 0]), (signal.SIGINT, [130, 130])]
)
def test_a_request_to_stop_between_loops_stops_all(number: int, codes: list[int]) -> None:
  ends = _run("wait", number)
  assert [code for code, _, _ in ends] == codes
  for _, _, said in ends:
    assert f"stopped by {signal.Signals(number).name}; what is finished is saved" in said
    assert "error" not in said and "Traceback" not in said


def test_a_killed_process_ends_the_others() -> None:
  first, second = _run("wait", signal.SIGKILL)
  assert second[0] == -signal.SIGKILL
  assert (first[0], _lines(first[2])) == (
    6,
    [
      "error: process 1 of 2 died (its connection broke); run the same command to go on from the "
      "last checkpoint"
    ],
  )
