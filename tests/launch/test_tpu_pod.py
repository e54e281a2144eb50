"""tpu_pod.sh with a stand-in for gcloud: what it would run, and slices that come, go and fail."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.launch.conftest import ROOT, StandIn
from tests.launch.words import LAUNCH, NASTY, POD, SHOW, shown, started, with_dry_run


@pytest.fixture(scope="module")
def small_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A repository of the scripts alone: every set-up packs it, and the whole takes a second."""
  folder = tmp_path_factory.mktemp("small")
  shutil.copytree(LAUNCH, folder / "launch", ignore=shutil.ignore_patterns("__pycache__"))
  subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
  return folder


@pytest.fixture
def stand_in(stand_in: StandIn, small_repository: Path) -> StandIn:
  stand_in.repository = small_repository
  return stand_in


def test_the_commands_for_a_pod(stand_in: StandIn):
  done = stand_in.launch(
    "tpu_pod.sh", *POD, "--project=p", "--spot", "--dry_run", "--", "python", "-m", "a.b", "c d"
  )
  commands = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("gcloud")]
  end = ["--zone=us-west4-a", "--project=p", "--quiet"]
  tpus = ["gcloud", "compute", "tpus"]
  assert commands[0] == [
    *tpus,
    "queued-resources",
    "create",
    "x",
    "--node-id=x",
    "--accelerator-type=v5litepod-16",
    "--runtime-version=v2-alpha-tpuv5-lite",
    "--spot",
    *end,
  ]
  describe = [*tpus, "queued-resources", "describe", "x", "--format=value(state.state)", *end]
  assert commands[1] == describe
  assert commands[-1] == [*tpus, "queued-resources", "delete", "x", "--force", *end]
  assert commands[-2] == [
    *tpus,
    "tpu-vm",
    "ssh",
    "x",
    "--worker=all",
    "--command=bash udp_jax/launch/supervise.sh --name=x --attempt=1 -- python -m a.b 'c d'",
    "--ssh-flag=-oServerAliveInterval=30",
    "--ssh-flag=-oServerAliveCountMax=4",
    *end,
  ]


def test_nasty_words_reach_the_workers(stand_in: StandIn):
  # A pod whose ssh is real: a shell on this machine, in another home.
  stand_in.plan({"code": "really"}, exists=True)
  (stand_in.home / "udp_jax").symlink_to(ROOT)
  done = stand_in.launch("tpu_pod.sh", "run", *POD, "--", *SHOW, *NASTY)
  assert done.returncode == 0, done.stderr
  assert shown(done.stdout) == NASTY


def test_the_dry_run_pasted_does_what_up_does(stand_in: StandIn):
  words = (*POD, "--project=p", "--spot", "--", "python", *NASTY)
  dry = stand_in.launch("tpu_pod.sh", *with_dry_run(words))
  stand_in.plan({"request": ["ACTIVE"], "node": ["READY"]})
  # Read from a file, as a terminal would read what was pasted.
  (stand_in.folder / "pasted").write_text(dry.stdout)
  pasted = stand_in.bash("-e", str(stand_in.folder / "pasted"))
  assert pasted.returncode == 0, pasted.stderr
  by_paste = stand_in.calls()

  (stand_in.folder / "calls.jsonl").unlink()
  stand_in.plan({"request": ["ACTIVE"], "node": ["READY"]})
  assert stand_in.launch("tpu_pod.sh", *words).returncode == 0

  def normal(calls: list[list[str]]) -> list[list[str]]:
    # Each run has its own number and its own temporary folder; looks at the state come and go.
    return [
      [re.sub(r"--attempt=[\d.]+|[\w/.]+(?=/udp_jax.tar.gz)", "", word) for word in call]
      for call in calls
      if "describe" not in call
    ]

  assert normal(stand_in.calls()) == normal(by_paste)
  assert stand_in.verbs() == ["create", "scp", "ssh", "run", "delete"]


def remote_command(call: list[str]) -> list[str]:
  """The words that `gcloud ... ssh` was to run."""
  return shlex.split(next(word for word in call if word.startswith("--command="))[10:])


def test_setup_brings_the_sources(stand_in: StandIn):
  stand_in.repository = ROOT
  stand_in.plan(exists=True)
  done = stand_in.launch("tpu_pod.sh", "setup", *POD)
  assert done.returncode == 0, done.stderr
  names = subprocess.run(
    ["tar", "--list", f"--file={stand_in.home}/udp_jax.tar.gz"],
    capture_output=True,
    text=True,
    check=True,
  ).stdout.splitlines()
  assert {"requirements.txt", "launch/setup_vm.sh", "udp_jax/errors.py"} <= set(names)
  assert not any(name.startswith((".venv", ".git/")) for name in names)


def test_setup_from_a_repository_sends_the_script_alone(stand_in: StandIn):
  stand_in.plan(exists=True)
  words = ("--repo=https://host/a b.git", "--ref=v1")
  prepare = 'mountpoint -q "/mnt/a b" || mount "/mnt/a b"'
  done = stand_in.launch("tpu_pod.sh", "setup", *POD, *words, f"--prepare={prepare}")
  assert done.returncode == 0, done.stderr
  assert {path.name for path in stand_in.home.iterdir()} == {"setup_vm.sh", "common.sh"}
  setup, after = [remote_command(call) for call in stand_in.calls() if "ssh" in call]
  assert setup == ["bash", "setup_vm.sh", *words, "--dir=udp_jax"]
  assert after == ["bash", "-c", prepare]


GOING = {"code": [143], "request_after": ["ACTIVE", "SUSPENDING", "SUSPENDED"]}
PREEMPTED = {"code": [255], "node_after": ["READY", "PREEMPTED"]}
NEVER_CAME = {"request": ["WAITING_FOR_RESOURCES", "FAILED"]}
ONCE = ["create", "scp", "ssh", "run"]


@pytest.mark.slow
@pytest.mark.parametrize(
  "lives, verbs",
  [
    pytest.param([{}], [*ONCE, "delete"], id="nothing happens"),
    pytest.param([GOING, {}], [*ONCE, "delete", *ONCE, "delete"], id="request suspended"),
    pytest.param([PREEMPTED, {}], [*ONCE, "delete", *ONCE, "delete"], id="node preempted"),
    pytest.param([NEVER_CAME, {}], ["create", "delete", *ONCE, "delete"], id="request failed"),
    pytest.param(
      [{"setup": 255, "node": ["READY", "PREEMPTED"]}, {}],
      ["create", "scp", "ssh", "delete", *ONCE, "delete"],
      id="preempted during setup",
    ),
    # Another worker dies of the loss of the first: 1 is no bug then.
    pytest.param(
      [{**PREEMPTED, "code": [1]}, GOING, {}],
      [*ONCE, "delete", *ONCE, "delete", *ONCE, "delete"],
      id="twice",
    ),
    pytest.param([{"code": [143, 0]}], [*ONCE, "run", "delete"], id="stopped on a healthy slice"),
    pytest.param([{"code": [255, 0]}], [*ONCE, "run", "delete"], id="connection lost"),
    pytest.param(
      [{"code": [255, 0], "node_after": ["REPAIRING", "REPAIRING", "READY"]}],
      [*ONCE, "scp", "ssh", "run", "delete"],
      id="repaired",
    ),
  ],
)
def test_up_runs_the_command_to_its_end(stand_in: StandIn, lives: list[dict], verbs: list[str]):
  stand_in.plan(*lives)
  words = ("python", "-m", "experiments.eudp", *NASTY)
  done = stand_in.launch("tpu_pod.sh", *POD, "--spot", "--", *words)
  assert done.returncode == 0, done.stderr
  assert stand_in.verbs() == verbs
  runs = [call for call in stand_in.calls() if "supervise.sh" in " ".join(call)]
  for call in runs:
    assert remote_command(call)[-len(words) :] == list(words)


def attempts(stand_in: StandIn) -> list[str]:
  return [m for call in stand_in.calls() for m in re.findall(r"--attempt=(\S+)", " ".join(call))]


def test_a_lost_connection_follows_the_same_run(stand_in: StandIn):
  stand_in.plan({"code": [255, 143, 0]})
  assert stand_in.launch("tpu_pod.sh", *POD, "--", "true").returncode == 0
  first, after_connection, after_stop = attempts(stand_in)
  assert first == after_connection
  assert first != after_stop


@pytest.mark.slow
@pytest.mark.parametrize("code", [2, 3, 4, 5, 7, 137])
def test_the_commands_own_failure_ends_it(stand_in: StandIn, code: int):
  stand_in.plan({"code": [code]})
  done = stand_in.launch("tpu_pod.sh", *POD, "--", "false")
  assert done.returncode == code
  # The slice is kept: the next try need not queue again.
  assert stand_in.verbs() == ONCE
  assert "launch/tpu_pod.sh delete --name=x" in done.stderr


def test_exit_code_1_is_asked_for_twice(stand_in: StandIn):
  # gcloud says 1 for a connection that it could not make, too.
  stand_in.plan({"code": [1]})
  assert stand_in.launch("tpu_pod.sh", *POD, "--", "false").returncode == 1
  assert stand_in.verbs() == [*ONCE, "run"]
  assert len(set(attempts(stand_in))) == 1


@pytest.mark.slow
def test_retries_are_bounded(stand_in: StandIn):
  stand_in.plan(GOING, GOING, GOING, GOING, GOING)
  done = stand_in.launch("tpu_pod.sh", *POD, "--spot", "--max_restarts=2", "--", "true")
  assert done.returncode == 75
  assert "gave up after 2 restarts" in done.stderr
  assert stand_in.verbs() == [*ONCE, "delete", *ONCE, "delete", *ONCE]


def test_a_request_that_is_refused_ends_it(stand_in: StandIn):
  stand_in.plan(create=9)
  done = stand_in.launch("tpu_pod.sh", *POD, "--", "true")
  assert done.returncode == 9
  assert stand_in.verbs() == ["create"]


def test_a_slice_that_is_there_is_used(stand_in: StandIn):
  stand_in.plan(exists=True)
  assert stand_in.launch("tpu_pod.sh", *POD, "--", "true").returncode == 0
  assert stand_in.verbs() == ["scp", "ssh", "run", "delete"]


def test_a_dead_slice_of_an_earlier_call_is_replaced(stand_in: StandIn):
  stand_in.plan({"request": ["SUSPENDED"]}, {}, exists=True)
  assert stand_in.launch("tpu_pod.sh", *POD, "--", "true").returncode == 0
  assert stand_in.verbs() == ["delete", *ONCE, "delete"]


@pytest.mark.parametrize("when, code, deleted", [("always", 3, True), ("never", 0, False)])
def test_what_is_deleted_at_the_end(stand_in: StandIn, when: str, code: int, deleted: bool):
  stand_in.plan({"code": [code]})
  done = stand_in.launch("tpu_pod.sh", *POD, f"--delete={when}", "--", "true")
  assert done.returncode == code
  assert ("delete" in stand_in.verbs()) == deleted


def test_ctrl_c_leaves_the_slice_and_says_so(stand_in: StandIn):
  stand_in.plan({"code": ["hangs"]}, exists=True)
  process = started(stand_in, str(LAUNCH / "tpu_pod.sh"), *POD, "--", "true")
  os.killpg(process.pid, signal.SIGINT)
  _, message = process.communicate(timeout=30)
  assert process.returncode == 130
  assert "x is left as it is and costs money" in message
  assert "delete" not in stand_in.verbs()


def test_a_state_that_cannot_be_read_does_not_wait_for_ever(stand_in: StandIn):
  plan = stand_in.folder / "plan.json"
  plan.write_text(json.dumps({**json.loads(plan.read_text()), "unreadable": True}))
  done = stand_in.launch("tpu_pod.sh", "wait", *POD)
  assert done.returncode == 1
  assert "could not reach the server" in done.stderr
  assert stand_in.verbs(of=("create", "delete")) == []


def test_single_actions(stand_in: StandIn):
  assert stand_in.launch("tpu_pod.sh", "create", *POD).returncode == 0
  assert stand_in.launch("tpu_pod.sh", "wait", *POD).returncode == 0
  status = stand_in.launch("tpu_pod.sh", "status", *POD)
  assert status.stdout.split() == ["ACTIVE", "READY"]
  assert stand_in.launch("tpu_pod.sh", "logs", *POD, "--worker=3", "--follow").returncode == 0
  assert stand_in.launch("tpu_pod.sh", "stop", *POD).returncode == 0
  assert stand_in.launch("tpu_pod.sh", "delete", *POD).returncode == 0
  logs, stop = [call for call in stand_in.calls() if "ssh" in call]
  assert {"--worker=3", "--command=tail --lines=200 -F .udp_jax/x/log"} <= set(logs)
  assert "--command=bash udp_jax/launch/supervise.sh --name=x --stop" in stop
  gone = stand_in.launch("tpu_pod.sh", "wait", *POD)
  assert gone.returncode == 1
  assert "queued resource NONE" in gone.stderr


@pytest.mark.parametrize(
  "words, config, message",
  [
    (("--type=v5litepod-16", "--zone=z", "--", "true"), None, "--name is missing"),
    (("--name=x", "--zone=z", "--", "true"), None, "--type is missing"),
    (("--name=x", "--type=v5litepod-16", "--", "true"), None, "--zone is missing"),
    (("--name=x", "--type=v5litepod-16", "--zone=z", "--", "true"), {}, "--project is missing"),
    ((*POD,), None, "no command"),
    ((*POD, "--"), None, "no command"),
    ((*POD, "--name=Not_a_name", "--", "true"), None, "--name=Not_a_name"),
    ((*POD, "--type=v99-8", "--", "true"), None, "--runtime_version"),
    ((*POD, "fly", "--", "true"), None, "unknown action fly"),
    ((*POD, "--max_restarts=many", "--", "true"), None, "--max_restarts=many"),
    ((*POD, "--zone", "--", "true"), None, "--zone needs a value"),
    ((*POD, "--spot=yes", "--", "true"), None, "--spot takes no value"),
    ((*POD, "--ref=v1", "--", "true"), None, "needs --repo"),
  ],
)
def test_bad_input_is_one_clear_line(stand_in: StandIn, words, config, message: str):
  stand_in.plan(config=config)
  done = stand_in.launch("tpu_pod.sh", *words)
  assert done.returncode == 2
  assert message in done.stderr
  assert done.stderr.startswith("error: ")
  assert len(done.stderr.splitlines()) == 1
  assert stand_in.verbs() == []
