"""Stand-ins for the programs of clouds and clusters, put first on PATH: none of them is real."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from absl import flags

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def without_flags() -> Iterator[None]:
  """Takes back the flags of what is imported inside: other programs have flags of these names."""
  before = {*flags.FLAGS}
  yield
  for name in {*flags.FLAGS} - before:
    delattr(flags.FLAGS, name)


# Every stand-in records how it was called.
RECORD = """\
#!{python} -ES
import json, os, sys
here = os.environ["STAND_IN"] + "/"
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
with open(here + "calls.jsonl", "a") as file:
  file.write(json.dumps([name, *words]) + "\\n")
"""

# A slice has "lives": what its request and node say from creation on, what a command on it returns,
# and what they say after that. A name that is taken cannot be created; one that is not there has no
# state. ssh joins its words with single spaces and hands them to the login shell, as gcloud does.
GCLOUD = """\
plan = json.load(open(here + "plan.json"))
option = lambda key: next((w.partition("=")[2] for w in words if w.startswith(key + "=")), None)

def keep():
  with open(here + "plan.json", "w") as file:
    json.dump(plan, file)

def step(states):
  return states.pop(0) if len(states) > 1 else states[0]

def answer(code, text=""):
  keep()
  print(text, file=sys.stderr if code else sys.stdout)
  sys.exit(code)

lives = plan["lives"]
if words[0] == "config":
  answer(0, plan["config"].get(words[2], "(unset)"))
group, verb = words[2:4]
if verb == "create":
  if plan["exists"]:
    answer(1, "ALREADY_EXISTS")
  if plan["create"]:
    answer(plan["create"], "quota")
  plan["exists"] = True
  if not plan["used_first"]:
    plan["used_first"] = True
  elif len(lives) > 1:
    lives.pop(0)
  answer(0)
if verb == "describe" and plan["unreadable"]:
  answer(1, "could not reach the server")
if not plan["exists"]:
  answer(1, "ERROR: NOT_FOUND: no such resource")
life = lives[0]
if verb == "delete":
  assert "--force" in words and "--quiet" in words
  plan["exists"] = False
  answer(0)
if verb == "describe":
  answer(0, step(life["request" if group == "queued-resources" else "node"]))
if verb == "scp":
  import shutil
  files = [w for w in words[4:] if not w.startswith("-")]
  target = here + "home/" + files.pop().partition(":")[2]
  for file in files:
    shutil.copy(file, target)
  answer(0)
assert verb == "ssh", words
command = " ".join(option("--command").split(" "))
if life["code"] != "really" and "supervise.sh" in command:
  code = step(life["code"])
  if code == "hangs":
    import signal
    print("working", flush=True)
    signal.pause()
  life["request"], life["node"] = life["request_after"], life["node_after"]
  answer(code)
keep()
if life["code"] != "really":
  sys.exit(life["setup"])
os.chdir(here + "home")
os.execvp("bash", ["bash", "-c", command])
"""

SBATCH = """\
with open(here + "batch.sh", "wb") as file:
  file.write(sys.stdin.buffer.read())
os.environ["SLURM_JOB_ID"] = "7"
os.execvp("bash", ["bash", here + "batch.sh"])
"""

# It becomes the process, as signals to srun reach the processes.
SRUN = """\
first = next(i for i, word in enumerate(words) if not word.startswith("--"))
os.execvp(words[first], words[first:])
"""
SQUEUE = "print(open(here + 'job_state').read())"
KUBECTL = "open(here + 'manifest.yaml', 'wb').write(sys.stdin.buffer.read())"


class StandIn:
  """A PATH on which only stand-ins answer for clouds and clusters.

  `repository` is the checkout whose scripts `launch` runs: this one, unless a test says otherwise.
  """

  def __init__(self, folder: Path):
    self.folder = folder
    self.repository = ROOT
    self.home = folder / "home"
    self.programs = folder / "bin"
    self.programs.mkdir(parents=True)
    self.home.mkdir()
    for name, body in {
      "gcloud": GCLOUD,
      "sbatch": SBATCH,
      "srun": SRUN,
      "squeue": SQUEUE,
      "scontrol": "",
      "kubectl": KUBECTL,
    }.items():
      self.add(name, body)
    self.plan()
    self.env = {
      **{k: v for k, v in os.environ.items() if not k.startswith(("CLOUDSDK", "SLURM"))},
      "PATH": f"{self.programs}:{os.environ['PATH']}",
      "STAND_IN": str(folder),
      "HOME": str(self.home),
    }

  def add(self, name: str, body: str) -> Path:
    path = self.programs / name
    path.write_text(RECORD.format(python=sys.executable) + textwrap.dedent(body) + "\n")
    path.chmod(0o755)
    return path

  def plan(self, *lives: dict, exists: bool = False, create: int = 0, config: dict | None = None):
    """What the cloud will do; a life's fields default to a slice that comes and works."""
    self.folder.joinpath("plan.json").write_text(
      json.dumps(
        {
          "lives": [
            {
              "request": ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"],
              "node": ["CREATING", "READY"],
              "setup": 0,
              "code": [0],
              "request_after": ["ACTIVE"],
              "node_after": ["READY"],
              **life,
            }
            for life in lives or [{}]
          ],
          "exists": exists,
          "used_first": exists,
          "create": create,
          "unreadable": False,
          "config": {"core/project": "p"} if config is None else config,
        }
      )
    )

  def calls(self) -> list[list[str]]:
    record = self.folder / "calls.jsonl"
    return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []

  def verbs(self, *, of: Iterable[str] = ("create", "delete", "scp", "ssh")) -> list[str]:
    """The gcloud verbs that change or run something, in order; "run" for the command itself."""
    verbs = [
      "run" if any("supervise.sh" in word for word in call) else call[4]
      for call in self.calls()
      if call[0] == "gcloud" and call[1] == "compute"
    ]
    return [verb for verb in verbs if verb in (*of, "run")]

  def launch(self, script: str, *words: str, **options) -> subprocess.CompletedProcess[str]:
    return self.bash(str(self.repository / "launch" / script), *words, **options)

  def bash(self, *words: str, **options) -> subprocess.CompletedProcess[str]:
    options = {"env": self.env, "cwd": self.folder, **options}
    return subprocess.run(
      ["bash", *words], capture_output=True, text=True, timeout=60, check=False, **options
    )


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
  return StandIn(tmp_path / "cloud")
