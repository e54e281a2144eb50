"""slurm.sh with stand-ins for sbatch and srun."""

from __future__ import annotations

import signal
import sys

import pytest

from tests.launch.conftest import StandIn
from tests.launch.words import NASTY, SAVES, SHOW, shown, started


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
