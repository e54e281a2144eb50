"""Starts one run in several processes, lets them agree, and ends them together.

Without a cluster in flags or the environment, these functions assume a single process and do
nothing. This module does not import jax before `start` needs it.

Agreement uses our own sockets: `jax.experimental.multihost_utils.process_allgather` takes 6 to 65
ms instead of 0.3 ms (two CPU processes), needs devices before the first agreement, and hangs on a
dead process.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np

from udp_jax.errors import ConfigError, PeerLostError, UserError
from udp_jax.runtime import clusters
from udp_jax.runtime.peers import Peers, split_address

_log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds that this process may take to fail by itself after another one failed: it usually fails in
# the same way, and then its own message is the better one.
_GRACE_S = 3.0
# A second signal within this many seconds is the same request, delivered twice.
SAME_REQUEST_S = 2.0


class Cluster(NamedTuple):
  """Identifies this process among the processes of a run.

  Attributes:
    coordinator: "host:port" at which process 0 listens.
    num_processes: number of processes in the run.
    process_id: number of this process, 0 to num_processes - 1.
    local_device_ids: accelerators of this machine that this process uses; None for all.
  """

  coordinator: str
  num_processes: int
  process_id: int
  local_device_ids: Sequence[int] | None = None


class _Group(NamedTuple):
  cluster: Cluster
  peers: Peers
  resumable: bool
  ended: threading.Event  # Another process died or failed.


_group: _Group | None = None


def detect(
  *,
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  environment: Mapping[str, str] | None = None,
) -> Cluster | None:
  """Returns the place of this process in its cluster, or None for a single process.

  The sources, in order: the arguments (flags), completed by UDP_COORDINATOR, UDP_NUM_PROCESSES and
  UDP_PROCESS_ID (or JOB_COMPLETION_INDEX, which Kubernetes sets in indexed jobs and JobSets); SLURM
  (`srun`); Cloud TPU pods; Kubernetes jobs, if the `kubernetes` package is installed.

  Raises:
    ConfigError: the settings contradict each other, are incomplete or out of range.
  """
  env = os.environ if environment is None else environment
  found = {
    "coordinator": _merged("coordinator", coordinator, env.get("UDP_COORDINATOR")),
    "num_processes": _merged("num_processes", num_processes, env.get("UDP_NUM_PROCESSES")),
    "process_id": _merged("process_id", process_id, env.get("UDP_PROCESS_ID")),
  }
  if all(value is None for value in found.values()):
    return _detect_cluster(env)
  if found["process_id"] is None and env.get("JOB_COMPLETION_INDEX"):
    found["process_id"] = _merged("process_id", None, env["JOB_COMPLETION_INDEX"])
  if missing := [name for name, value in found.items() if value is None]:
    given = next(name for name, value in found.items() if value is not None)
    raise ConfigError(
      f"--{given} needs --{' and --'.join(missing)} too (or UDP_{missing[0].upper()} in the "
      "environment)"
    )
  return _checked(Cluster(**found))


def _merged(name: str, flag: Any, variable: str | None) -> Any:
  value: Any = variable or None
  if value is not None and name != "coordinator":
    if not value.isdigit():
      raise ConfigError(f"UDP_{name.upper()}={value} is not a number")
    value = int(value)
  if flag is not None and value is not None and flag != value:
    raise ConfigError(f"--{name}={flag} contradicts UDP_{name.upper()}={value} in the environment")
  return value if flag is None else flag


def _checked(cluster: Cluster) -> Cluster | None:
  split_address(cluster.coordinator)
  if cluster.num_processes < 1:
    raise ConfigError(f"num_processes is {cluster.num_processes}; it must be at least 1")
  if not 0 <= cluster.process_id < cluster.num_processes:
    raise ConfigError(
      f"process_id is {cluster.process_id}; with {cluster.num_processes} processes it must be 0 "
      f"to {cluster.num_processes - 1}"
    )
  return cluster if cluster.num_processes > 1 else None


def _detect_cluster(env: Mapping[str, str]) -> Cluster | None:
  """Asks the cluster's scheduler for settings, only if there may be one: asking takes time."""
  slurm = env.get("SLURM_STEP_NODELIST") and int(env.get("SLURM_NTASKS") or 1) > 1
  tpu = env.get("JAX_PLATFORMS", "") in ("", "tpu", "tpu,cpu") and (
    env.get("TPU_WORKER_HOSTNAMES")
    or env.get("TPU_PROCESS_ADDRESSES")
    or importlib.util.find_spec("libtpu")
  )
  kubernetes = env.get("JOB_COMPLETION_INDEX") and importlib.util.find_spec("kubernetes")
  if not (slurm or tpu or kubernetes):
    return None
  try:
    found = clusters.detect(env)
  except (RuntimeError, KeyError, ValueError, OSError) as error:
    raise ConfigError(
      f"this looks like a cluster, but its description cannot be read ({error}); give "
      "--coordinator, --num_processes and --process_id"
    ) from error
  if found is None:
    return None
  devices = found.local_device_ids
  # SLURM counts one process per GPU; launch/slurm.sh sets this variable to run one per node.
  if named := env.get("JAX_LOCAL_DEVICE_IDS"):
    if not all(part.strip().isdigit() for part in named.split(",")):
      raise ConfigError(f"JAX_LOCAL_DEVICE_IDS={named} is not a list of numbers")
    devices = [int(part) for part in named.split(",")]
  return _checked(Cluster(found.coordinator, found.num_processes, found.process_id, devices))


def start(cluster: Cluster | None, *, peer_timeout_s: float, resumable: bool) -> None:
  """Connects to the other processes; call it before any device is used.

  Args:
    cluster: result of `detect`; None for a single process.
    peer_timeout_s: seconds of silence after which another process counts as lost and this one ends.
    resumable: whether the same command resumes a stopped run; used in messages.

  Raises:
    ConfigError, PeerLostError: the processes cannot connect.
  """
  global _group
  if cluster is None:
    return
  if not peer_timeout_s >= 1:
    raise ConfigError(f"peer_timeout_s is {peer_timeout_s}; it must be at least 1")
  peers = Peers(
    cluster.coordinator,
    cluster.num_processes,
    cluster.process_id,
    peer_timeout_s=peer_timeout_s,
    on_end=_other_ended,
    on_stop=_other_asked_to_stop,
  )
  _group = _Group(cluster, peers, resumable, threading.Event())
  import jax

  # Our loop agrees on stopping; jax's service would take over the handler of SIGTERM.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    jax.distributed.initialize(
      peers.service_address,
      cluster.num_processes,
      cluster.process_id,
      local_device_ids=cluster.local_device_ids,
      cluster_detection_method="deactivate",
      coordinator_bind_address=peers.service_address,
      # Our timeout comes first, with a message; jax's ends the process without one.
      heartbeat_timeout_seconds=int(peer_timeout_s) + 60,
    )
  except RuntimeError as error:
    raise PeerLostError(f"the processes do not come together: {error}") from error


def index() -> int:
  """Returns the number of this process; 0 in a single process."""
  return _group.cluster.process_id if _group else 0


def count() -> int:
  """Returns the number of processes in this run."""
  return _group.cluster.num_processes if _group else 1


def is_main() -> bool:
  """Returns whether this is process 0, which alone logs, merges and reports."""
  return index() == 0


def share(number: int) -> np.ndarray:
  """Returns this process's contiguous part of `range(number)`."""
  return np.array_split(np.arange(number), count())[index()]


def gather(value: T, name: str) -> list[T]:
  """Returns every process's JSON `value`, by process number; all must call it in one order."""
  return _group.peers.gather(value, name) if _group else [value]


def barrier(name: str) -> None:
  """Returns once every process has called it."""
  gather(None, name)


def from_main(function: Callable[[], T], name: str) -> T:
  """Calls `function` in process 0 only and returns its JSON result in every process.

  Raises:
    UserError: `function` raised it in process 0; every process raises it.
  """
  if _group is None:
    return function()
  answer: Any = None
  mine: UserError | None = None
  if is_main():
    try:
      answer = {"value": function()}
    except UserError as error:
      mine, answer = error, {"error": str(error), "code": error.exit_code}
  answer = gather(answer, name)[0]
  if mine is not None:
    raise mine
  if "error" in answer:
    raise _same_error(answer["error"], answer["code"])
  return answer["value"]


def all_or_none(function: Callable[[], T], name: str) -> T:
  """Runs `function` in every process; a UserError in any process is raised in all of them."""
  mine: UserError | None = None
  result: T | None = None
  try:
    result = function()
  except UserError as error:
    mine = error
  failures = gather(None if mine is None else {"text": str(mine), "code": mine.exit_code}, name)
  if mine is not None:
    raise mine
  for number, failure in enumerate(failures):
    if failure is not None:
      raise _same_error(f"process {number}: {failure['text']}", failure["code"])
  return result  # type: ignore[return-value]


def _same_error(text: Any, code: Any) -> UserError:
  error = UserError(text)
  error.exit_code = code
  return error


def ask_to_stop(number: int) -> None:
  """Passes a signal that this process received to the others. Safe in a signal handler."""
  if _group:
    _group.peers.ask_to_stop(number)


def leave(code: int, text: str, *, stopped: bool = False) -> None:
  """Announces why this process ends before the others; it must then end by `exit_now`.

  Args:
    code: exit code of this process.
    text: reason for the end.
    stopped: whether the process was asked to stop, which is not a failure.
  """
  if _group:
    _group.peers.leave(code, text, stopped=stopped)


def finish() -> None:
  """Waits for all processes, then closes the connections in order."""
  global _group
  if _group is None:
    return
  barrier("finish")
  _group.peers.left.set()
  import jax

  jax.distributed.shutdown()
  # Process 0 serves the others up to here; no process needs another one from now on.
  _group.peers.leave(0, "done")
  _group = None


def was_caused_by_another(error: BaseException) -> bool:
  """Returns whether another process's end likely caused an exception, e.g. a failed collective."""
  del error
  return _group is not None and _group.ended.wait(_GRACE_S)


def wait_for_the_end() -> None:
  """Never returns: the thread that saw another process end reports it and ends this one."""
  while True:
    time.sleep(1.0)


def _other_ended(number: int, how: Mapping[str, Any]) -> None:
  """Reports that another process ended, and ends this one if it does not end by itself."""
  group = _group
  if group is None:  # The run has not started or has finished.
    if "lost" in how or how.get("code"):
      _end(f"process {number} ended before the run began ({_reason(how)})")
    return
  if "lost" in how:
    group.ended.set()
    again = "; run the same command to go on from the last checkpoint" if group.resumable else ""
    _end(f"process {number} of {group.cluster.num_processes} died ({_reason(how)}){again}")
  elif how["stopped"]:
    # The other process had nothing to save, and this one cannot go on without it.
    time.sleep(_GRACE_S)
    if not group.peers.left.is_set():
      last_words(f"process {number}: {how['text']}")
      group.peers.leave(how["code"], how["text"], stopped=True)
      exit_now(how["code"])
  elif how["code"]:
    time.sleep(_GRACE_S / 2)
    if not group.peers.left.is_set():
      group.ended.set()
      _end(f"process {number} of {group.cluster.num_processes} failed: {_reason(how)}")


def _reason(how: Mapping[str, Any]) -> str:
  return str(how.get("lost") or how.get("text") or f"exit code {how.get('code')}")


_ending = threading.Lock()


def _end(text: str) -> None:
  _ending.acquire()  # Never released, so that only one message is written.
  last_words(f"error: {' '.join(text.split())}")
  exit_now(PeerLostError.exit_code)


def last_words(text: str) -> None:
  """Writes a line to stderr; safe in a signal handler and if stderr is closed."""
  with contextlib.suppress(OSError):
    os.write(2, f"\n{text}\n".encode())


def exit_now(code: int) -> NoReturn:
  """Ends this process at once, even with a closed stdout; a normal exit of jax waits for others.

  Args:
    code: the exit code.
  """
  try:
    with contextlib.suppress(OSError, ValueError):  # The pipe or file may be closed.
      sys.stdout.flush()
  finally:
    os._exit(code)


def _other_asked_to_stop(number: int) -> None:
  _log.warning("another process received %s", signal.Signals(number).name)
  os.kill(os.getpid(), number)
