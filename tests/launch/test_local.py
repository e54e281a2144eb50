"""`launch/local.sh`: N processes on this machine, with commands that take no time."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "local.sh"
WEIRD = ["two  words", "it's", '"$HOME"', "a;b|c&d", "*", "", "new\nline", "--flag=x y", "~"]


def _run(*words: str, **options) -> subprocess.CompletedProcess[str]:
  return subprocess.run(
    ["bash", str(SCRIPT), *words],
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
    **options,
  )


def test_every_process_is_told_who_it_is(tmp_path: Path) -> None:
  program = 'echo "$UDP_COORDINATOR $UDP_NUM_PROCESSES $UDP_PROCESS_ID"'
  done = _run("3", f"--log_dir={tmp_path}/a b", "--", "sh", "-c", program)
  assert (done.returncode, done.stderr) == (0, "")
  address, count, number = done.stdout.split()
  host, port = address.split(":")
  assert (host, count, number) == ("127.0.0.1", "3", "0") and 1024 < int(port) < 65536
  logs = {path.name: path.read_text() for path in (tmp_path / "a b").iterdir()}
  assert logs == {f"process-{i}.log": f"{address} 3 {i}\n" for i in (1, 2)}


def test_words_arrive_as_they_were_given(tmp_path: Path) -> None:
  done = _run("2", "--", "python3", "-c", "import sys; print(sys.argv[1:])", *WEIRD)
  assert (done.returncode, done.stdout) == (0, f"{WEIRD}\n")


def test_a_dry_run_prints_what_a_shell_would_do_and_does_nothing(tmp_path: Path) -> None:
  command = ["python3", "-c", "import sys; print(sys.argv[1:])", *WEIRD]
  before = set(tmp_path.iterdir())
  options = ["--dry_run", f"--log_dir={tmp_path}/not made"]
  done = _run("2", *options, "--", *command)
  assert (done.returncode, done.stderr) == (0, "")
  assert set(tmp_path.iterdir()) == before
  words = shlex.split(done.stdout)
  assert words[0] == "env" and words[-1] == "wait"
  assert [w for w in words if w.startswith("UDP_PROCESS_ID")] == [
    "UDP_PROCESS_ID=0",
    "UDP_PROCESS_ID=1",
  ]
  (tmp_path / "not made").mkdir()
  again = subprocess.run(["bash", "-c", done.stdout], capture_output=True, text=True, check=True)
  assert again.stdout == f"{WEIRD}\n"
  assert (tmp_path / "not made" / "process-1.log").read_text() == f"{WEIRD}\n"


def test_logs_are_temporary_unless_something_fails(tmp_path: Path) -> None:
  environment = os.environ | {"TMPDIR": str(tmp_path)}
  done = _run("2", "--", "true", env=environment)
  assert (done.returncode, list(tmp_path.iterdir())) == (0, [])
  program = 'test "$UDP_PROCESS_ID" = 0 || { echo "what went wrong"; exit 7; }'
  done = _run("2", "--", "sh", "-c", program, env=environment)
  assert done.returncode == 7
  folder = next(tmp_path.iterdir())
  assert done.stderr.splitlines() == [
    "error: process 1 of 2 ended with exit code 7",
    f"the end of {folder}/process-1.log:",
    "what went wrong",
    f"logs: {folder}",
  ]


def test_the_one_that_dies_is_named_and_the_rest_is_ended() -> None:
  program = 'test "$UDP_PROCESS_ID" = 1 && kill -9 $$; sleep 60'
  start = time.monotonic()
  done = _run("3", "--grace_s=1", "--", "sh", "-c", program)
  assert done.returncode == 128 + signal.SIGKILL
  assert "error: process 1 of 3 ended with signal KILL" in done.stderr
  assert "error: 2 of 3 processes did not end within 1 s: killed" in done.stderr
  assert time.monotonic() - start < 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_all_of_them(number: int, tmp_path: Path) -> None:
  """Also what they start themselves, and the script waits until they are done."""
  name = signal.Signals(number).name.removeprefix("SIG")
  program = (
    f"trap 'sleep 0.2; touch {tmp_path}/stopped-$UDP_PROCESS_ID; exit 0' {name}; "
    f"touch {tmp_path}/up-$UDP_PROCESS_ID; while :; do sleep 0.05; done"
  )
  process = subprocess.Popen(
    ["bash", str(SCRIPT), "2", "--", "bash", "-c", program], start_new_session=True
  )
  deadline = time.monotonic() + 30
  while len(list(tmp_path.glob("up-*"))) < 2:
    assert time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(number)
  assert process.wait(30) == 0
  assert {path.name for path in tmp_path.glob("stopped-*")} == {"stopped-0", "stopped-1"}


@pytest.mark.parametrize(
  ("words", "message"),
  [
    ([], "how many processes"),
    (["2"], "no command: it follows --"),
    (["0", "--", "true"], "0 is no number of processes"),
    (["two", "--", "true"], "two is no number of processes"),
    (["2", "python", "x"], "unexpected argument python"),
    (["2", "--nope=1", "--", "true"], "unknown option --nope"),
    (["2", "--port=x", "--", "true"], "--port=x is no whole number"),
    (["2", "--log_dir=/dev/null/x", "--", "true"], "cannot make the folder /dev/null/x"),
  ],
)
def test_mistakes_are_one_line_and_exit_2(words: list[str], message: str) -> None:
  done = _run(*words)
  assert done.returncode == 2
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
  assert message in done.stderr


def test_help() -> None:
  done = _run("--help")
  assert (done.returncode, done.stderr) == (0, "")
  assert "bash launch/local.sh 2 -- python -m experiments.eudp" in done.stdout
