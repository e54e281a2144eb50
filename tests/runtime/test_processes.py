"""Who this process is, by flags and environment; and everything of a single process."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

import pytest

from udp_jax.errors import ConfigError, OutputError, PeerLostError, UserError
from udp_jax.runtime import processes

UDP = {"UDP_COORDINATOR": "host:1234", "UDP_NUM_PROCESSES": "4", "UDP_PROCESS_ID": "2"}
# `JAX_PLATFORMS` keeps a test on a TPU machine from asking for its pod.
CPU = {"JAX_PLATFORMS": "cpu"}


def test_nothing_to_find_is_a_single_process():
  assert processes.detect(environment=CPU) is None
  # A task of a batch job that was not started by srun, or alone.
  slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
  assert processes.detect(environment=CPU | slurm) is None
  alone = slurm | {"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "node1"}
  assert processes.detect(environment=CPU | alone) is None
  # A pod of Kubernetes that does something else.
  pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"}
  assert processes.detect(environment=CPU | pod) is None


def test_explicit_settings():
  expected = processes.Cluster("host:1234", 4, 2)
  assert processes.detect(environment=UDP) == expected
  flags = {"coordinator": "host:1234", "num_processes": 4, "process_id": 2}
  assert processes.detect(**flags, environment={}) == expected
  assert processes.detect(**flags, environment=UDP) == expected
  # Flags and environment complete each other.
  partly = {k: v for k, v in UDP.items() if k != "UDP_PROCESS_ID"}
  assert processes.detect(process_id=2, environment=partly) == expected
  # A JobSet's manifest is the same for all pods; their numbers come from Kubernetes.
  assert processes.detect(environment=partly | {"JOB_COMPLETION_INDEX": "2"}) == expected
  assert processes.detect(environment=UDP | {"JOB_COMPLETION_INDEX": "9"}) == expected
  # Process 0 must not be taken for "not given".
  assert processes.detect(process_id=0, environment=partly).process_id == 0


def test_one_of_one_is_a_single_process():
  alone = {"coordinator": "host:1", "num_processes": 1, "process_id": 0}
  assert processes.detect(**alone, environment={}) is None


@pytest.mark.parametrize(
  ("flags", "environment", "message"),
  [
    ({"num_processes": 2}, {}, "--num_processes needs --coordinator and --process_id too"),
    ({}, {"UDP_COORDINATOR": "h:1"}, r"UDP_NUM_PROCESSES in the environment"),
    ({"process_id": 1}, UDP, "--process_id=1 contradicts UDP_PROCESS_ID=2 in the environment"),
    ({"coordinator": "x:1"}, UDP, "--coordinator=x:1 contradicts UDP_COORDINATOR=host:1234"),
    ({}, UDP | {"UDP_PROCESS_ID": "4"}, "process_id is 4; with 4 processes it must be 0 to 3"),
    ({}, UDP | {"UDP_PROCESS_ID": "-1"}, "UDP_PROCESS_ID=-1 is not a number"),
    ({}, UDP | {"UDP_NUM_PROCESSES": "two"}, "UDP_NUM_PROCESSES=two is not a number"),
    ({}, UDP | {"UDP_NUM_PROCESSES": "0"}, "num_processes is 0; it must be at least 1"),
    ({}, UDP | {"UDP_COORDINATOR": "host"}, "the coordinator's address 'host' is not HOST:PORT"),
  ],
)
def test_contradictions_and_nonsense(flags, environment, message):
  with pytest.raises(ConfigError, match=message):
    processes.detect(**flags, environment=environment)


@pytest.mark.slow
def test_slurm():
  slurm = {"SLURM_JOB_ID": "5000", "SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
  nodes = {"SLURM_STEP_NODELIST": "node[003-006]", "SLURM_STEP_NUM_NODES": "4"}
  program = "from udp_jax.runtime import processes; print(processes.detect())"
  import os
  import subprocess

  def detected(**more: str) -> str:
    done = subprocess.run(
      [sys.executable, "-c", program],
      env=os.environ | slurm | nodes | CPU | more,
      capture_output=True,
      text=True,
      check=True,
    )
    return done.stdout

  port = 5000 % 2**12 + 65536 - 2**12
  said = detected()
  assert f"coordinator='node003:{port}', num_processes=8, process_id=5" in said
  assert "local_device_ids=[1]" in said
  # One process a node, as launch/slurm.sh starts them: it has all of the node's devices.
  assert "local_device_ids=[0, 1, 2, 3]" in detected(JAX_LOCAL_DEVICE_IDS="0,1,2,3")


def test_a_single_process_agrees_with_itself():
  assert (processes.index(), processes.count(), processes.is_main()) == (0, 1, True)
  assert processes.gather({"a": 1}, "x") == [{"a": 1}]
  assert processes.share(5).tolist() == [0, 1, 2, 3, 4]
  assert processes.from_main(lambda: 7, "x") == 7
  assert processes.all_or_none(lambda: 8, "x") == 8
  for function in (processes.from_main, processes.all_or_none):
    with pytest.raises(OutputError, match="full"):
      function(_fail, "x")
  processes.barrier("x")
  processes.ask_to_stop(15)
  processes.leave(1, "no")
  processes.finish()


def _fail():
  raise OutputError("the disk is full")


class Others:
  """Stands for the connections of process 1 of 3, with the others' answers."""

  def __init__(self, *answers):
    self.answers, self.said = answers, []

  def gather(self, value, name):
    self.said.append(value)
    return [self.answers[0], value, self.answers[1]]


@pytest.fixture
def second_of_three(monkeypatch):
  def join(*answers):
    others = Others(*answers)
    settings = processes.Cluster("host:1", 3, 1)
    group = processes._Group(settings, others, True, None)
    monkeypatch.setattr(processes, "_group", group)
    return others

  return join


def test_shares_are_contiguous_and_complete(second_of_three):
  second_of_three()
  assert (processes.index(), processes.count(), processes.is_main()) == (1, 3, False)
  assert processes.share(7).tolist() == [3, 4]
  assert processes.share(1).tolist() == []


def test_what_process_0_found_out_or_failed_in_is_everyones(second_of_three):
  second_of_three({"value": [1]}, None)
  assert processes.from_main(_fail, "x") == [1]  # Not called here.
  second_of_three({"error": "the disk is full", "code": 4}, None)
  with pytest.raises(UserError, match="the disk is full") as failure:
    processes.from_main(_fail, "x")
  assert failure.value.exit_code == 4


def test_a_failure_of_one_is_a_failure_of_all(second_of_three):
  second_of_three(None, {"text": "no disk", "code": 4})
  with pytest.raises(UserError, match="^process 2: no disk$") as failure:
    processes.all_or_none(lambda: 1, "x")
  assert failure.value.exit_code == 4
  others = second_of_three(None, None)
  with pytest.raises(OutputError, match="^the disk is full$"):
    processes.all_or_none(_fail, "x")
  assert others.said == [{"text": "the disk is full", "code": 4}]
  second_of_three(None, None)
  assert processes.all_or_none(lambda: 1, "x") == 1


class Exited(BaseException):
  pass


def test_another_s_death_ends_this_process_even_if_nobody_reads_its_output(monkeypatch):
  """Otherwise it would wait for the dead one for ever: its terminal, or `tee`, may be gone."""
  reads, writes = os.pipe()
  os.close(reads)

  def leave(code):
    raise Exited(code)

  monkeypatch.setattr(processes.os, "_exit", leave)
  monkeypatch.setattr(processes, "_ending", threading.Lock())
  write = os.write
  with os.fdopen(writes, "w") as closed:
    monkeypatch.setattr(processes.os, "write", lambda number, text: write(writes, text))
    monkeypatch.setattr(sys, "stdout", closed)
    closed.write("unread")
    with pytest.raises(Exited) as left:
      processes._other_ended(1, {"lost": "its connection broke"})
    with contextlib.suppress(OSError):
      closed.close()
  assert left.value.args == (PeerLostError.exit_code,)


def test_exit_code_is_its_own():
  codes = [error.exit_code for error in UserError.__subclasses__()]
  assert codes.count(PeerLostError.exit_code) == 1
