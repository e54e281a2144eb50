"""supervise.sh: what keeps a command running on a worker, whoever listens."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.launch.conftest import ROOT, StandIn
from tests.launch.words import NASTY, SAVES, SHOW, SUPERVISE, shown, started


@pytest.mark.parametrize("name", [[], ["--name=x"]])
def test_supervise_returns_the_commands_exit_code(stand_in: StandIn, name: list[str]):
  done = stand_in.launch("supervise.sh", *name, "--", *SHOW, *NASTY)
  assert (done.returncode, shown(done.stdout)) == (0, NASTY)
  done = stand_in.launch("supervise.sh", *name, "--", "bash", "-c", "pwd; exit 9")
  assert done.returncode == 9
  assert str(ROOT) in done.stdout.splitlines()


def test_a_stopped_command_counts_as_stopped_though_it_returns_0(stand_in: StandIn):
  saved = stand_in.folder / "saved"
  process = started(stand_in, SUPERVISE, "--", sys.executable, "-c", SAVES, str(saved))
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=30) == 143
  assert saved.read_text() == "saved"


def test_a_run_outlives_its_connection_and_is_followed(stand_in: StandIn):
  command = ["--", sys.executable, "-c", SAVES, str(stand_in.folder / "saved")]
  first = started(stand_in, SUPERVISE, "--name=x", "--attempt=1", *command)
  first.kill()
  first.wait()
  second = started(stand_in, SUPERVISE, "--name=x", "--attempt=1", *command)
  other = stand_in.launch("supervise.sh", "--name=x", "--", "true")
  assert other.returncode == 2
  assert "x runs another command" in other.stderr
  assert stand_in.launch("supervise.sh", "--name=x", "--stop").returncode == 0
  assert second.wait(timeout=30) == 130
  assert (stand_in.folder / "saved").exists()
  # One process worked, though two calls asked for it.
  assert (stand_in.home / ".udp_jax/x/log").read_text().count("working") == 1


def test_an_attempt_that_has_ended_does_not_start_again(stand_in: StandIn):
  counter = stand_in.folder / "counter"
  words = ("--name=x", "--", "bash", "-c", 'echo run >>"$1"; exit 4', "bash", str(counter))
  for attempt, runs in (("1", 1), ("1", 1), ("2", 2)):
    done = stand_in.launch("supervise.sh", f"--attempt={attempt}", *words)
    assert done.returncode == 4
    assert counter.read_text().count("run") == runs


def test_a_killed_command_is_told_from_one_that_ended(stand_in: StandIn):
  process = started(stand_in, SUPERVISE, "--name=x", "--", "bash", "-c", "echo working; sleep 60")
  pid = int((stand_in.home / ".udp_jax/x/pid").read_text())
  children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
  for victim in (pid, *map(int, children)):
    os.kill(victim, signal.SIGKILL)
  assert process.wait(timeout=30) == 137
