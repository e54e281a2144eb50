"""Words for the launch scripts, and ways to start them, that several tests share."""

from __future__ import annotations

import json
import re
import subprocess
import sys

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
  "gpu_evidence.sh": ("pack", "--pictures=pictures.zip"),
  "gpu_run.sh": ("--out=gpu",),
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
