"""Reads a process's number and the number of processes from a cluster's scheduler.

SLURM, Open MPI, Cloud TPUs (by their metadata server, or in Kubernetes) and Kubernetes jobs are
read by the rules of `jax.distributed.initialize`, which itself returns only once all processes are
connected. This module does not import jax.
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

_TPU_PORT, _KUBERNETES_PORT = "8482", "55527"
# Programs may choose freely among the ports from here on; the job's number picks one of these 4096.
_FIRST_PORT, _PORTS = 65535 - 2**12 + 1, 2**12
_RESOLVE_S = 300.0
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

Env = Mapping[str, str]


class Found(NamedTuple):
  """A scheduler's description of this process.

  Attributes:
    coordinator: "host:port" at which process 0 listens.
    num_processes: number of processes in the run.
    process_id: number of this process, from 0.
    local_device_ids: accelerators of this machine that this process uses; None for all.
  """

  coordinator: str
  num_processes: int
  process_id: int
  local_device_ids: list[int] | None = None


def detect(env: Env) -> Found | None:
  """Returns the settings of this process, or None if no known scheduler started it.

  Args:
    env: environment variables; JAX_COORDINATOR_PORT replaces the port.

  Raises:
    RuntimeError, KeyError, ValueError, OSError: the scheduler's description cannot be read.
  """
  on_tpu = _on_tpu(env)
  found: Found | None = None
  if "OMPI_MCA_orte_hnp_uri" in env:
    found = _open_mpi(env)
  elif all(f"SLURM_{name}" in env for name in _SLURM):
    found = _slurm(env)
  elif on_tpu and _is_tpu_vm(env):
    hosts = _tpu_endpoints(_metadata(env, "worker-network-endpoints")[0])
    found = _tpu(env, hosts, lambda: int(_metadata(env, "agent-worker-number")[0]))
  elif on_tpu and _tpu_hosts(env) is not None:
    hosts = str(_tpu_hosts(env)).split(",")
    found = _tpu(env, hosts, lambda: int(env["TPU_WORKER_ID"]))
  elif "KUBERNETES_SERVICE_HOST" in env and importlib.util.find_spec("kubernetes"):
    found = _kubernetes(env)
  # SLURM and Open MPI start one process per device; a TPU process uses all devices of its host.
  return found._replace(local_device_ids=None) if found and on_tpu else found


# --- SLURM and Open MPI

_SLURM = ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")


def _slurm(env: Env) -> Found:
  """Reads a task of `srun`. Node lists: node001; node001,b; node[001-015],b; node[001,007-015]."""
  port = str(int(env["SLURM_JOB_ID"]) % _PORTS + _FIRST_PORT)
  name, number = re.match(r"([^,\[]*)(?:\[([^,\-]*))?", env["SLURM_STEP_NODELIST"]).groups()  # type: ignore[union-attr]
  first = name + (number or "").removesuffix("]")
  return Found(
    _address(env, first, port),
    int(env["SLURM_NTASKS"]),
    int(env["SLURM_PROCID"]),
    [int(env["SLURM_LOCALID"])],
  )


def _open_mpi(env: Env) -> Found:
  """Reads a process of `mpirun`. Example URI: 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911."""
  uri = env["OMPI_MCA_orte_hnp_uri"]
  # Job numbers are multiples of 2^12.
  port = str(int(uri.split(".", maxsplit=1)[0]) // 2**12 % _PORTS + _FIRST_PORT)
  host = re.search(r"tcp://(.+?)[,:]|tcp6://\[(.+?)[,\]]", uri)
  if host is None:
    raise RuntimeError("Open MPI's address of its launcher is not as expected")
  return Found(
    _address(env, host[1] or host[2], port),
    int(env["OMPI_COMM_WORLD_SIZE"]),
    int(env["OMPI_COMM_WORLD_RANK"]),
    [int(env["OMPI_COMM_WORLD_LOCAL_RANK"])],
  )


# --- Cloud TPUs


def _on_tpu(env: Env) -> bool:
  """Returns whether this machine has TPU chips and their library, by the test of `import jax`."""
  library = env.get("TPU_LIBRARY_PATH")
  has_library = bool(library and os.path.isfile(library)) or bool(
    importlib.util.find_spec("libtpu")
  )
  return (has_library and _has_chips()) or "JAX_FORCE_TPU_INIT" in env


def _has_chips(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
  """Returns whether any PCI device is made by Google."""
  return any(path.read_text().strip() == "0x1ae0" for path in devices.glob("*/vendor"))


def _is_tpu_vm(env: Env) -> bool:
  """Returns whether the metadata server lists this machine as a worker of a TPU slice."""
  if "TPU_SKIP_MDS_QUERY" in env or not _has_chips():
    return False
  return _metadata(env, "agent-worker-number")[1] == 200


def _tpu_hosts(env: Env) -> str | None:
  """Returns the workers of a slice in Kubernetes as "host,host,..."."""
  return env.get("TPU_PROCESS_ADDRESSES", env.get("TPU_WORKER_HOSTNAMES"))


def _tpu_endpoints(text: str) -> list[str]:
  """Parses hosts from "host,host,..." or the older form "name:id:ip,name:id:ip,..."."""
  parts = [worker.split(":") for worker in text.split(",")]
  if unknown := [":".join(part) for part in parts if len(part) not in (1, 3)]:
    raise ValueError(f"unsupported worker-network-endpoints format: {unknown[0]}")
  return [part[-1] for part in parts]


def _tpu(env: Env, hosts: list[str], number: Callable[[], int]) -> Found:
  """Describes a worker of one slice, or of one of several slices that Megascale numbers."""
  coordinator = _tpu_value(env, "MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]
  slices = int(_tpu_value(env, "MEGASCALE_NUM_SLICES") or 1)
  of_slice = int(_tpu_value(env, "MEGASCALE_SLICE_ID") or 0)
  host = _resolved(coordinator.split(":")[0])
  return Found(
    _address(env, host, _TPU_PORT), len(hosts) * slices, number() + of_slice * len(hosts)
  )


def _tpu_value(env: Env, name: str) -> str | None:
  """Reads a variable from the environment, else from the lines NAME: 'value' of "tpu-env"."""
  if name in env:
    return env[name]
  found = None
  for line in _metadata(env, "tpu-env")[0].split("\n"):
    key, colon, value = line.partition(":")
    if colon and key.strip() == name:
      found = value.strip().strip("'")
  return found


def _metadata(env: Env, name: str) -> tuple[str, int]:
  """Returns (text, HTTP status) of a metadata attribute of this machine, after up to six tries."""
  host = env.get("GCE_METADATA_IP", "metadata.google.internal")
  url = f"http://{host}/computeMetadata/v1/instance/attributes/{name}"
  request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
  text, status = "", 0
  for _ in range(6):
    try:
      with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode(), answer.status
    except urllib.error.HTTPError as error:
      text, status = error.read().decode(errors="replace"), error.code
    time.sleep(0.5)
  return text, status


# --- Kubernetes


def _kubernetes(env: Env) -> Found:
  """Describes a pod of an indexed job or JobSet, from the cluster's API."""
  import kubernetes

  kubernetes.config.load_incluster_config()
  core, batch = kubernetes.client.CoreV1Api(), kubernetes.client.BatchV1Api()
  try:
    namespace = _SERVICE_ACCOUNT.read_text().strip()
    address = socket.gethostbyname(env["HOSTNAME"])
    pods = core.list_namespaced_pod(namespace=namespace, field_selector=f"status.podIP={address}")
    [pod] = pods.items
    job = batch.read_namespaced_job(name=pod.metadata.labels["job-name"], namespace=namespace)
  except kubernetes.client.exceptions.ApiException as error:
    raise RuntimeError(f"Kubernetes: {error.status} {error.reason}") from error
  owners = [owner.kind for owner in pod.metadata.owner_references if owner.controller is True]
  if owners != ["Job"]:
    raise RuntimeError("Kubernetes: the pod is not of a Job or JobSet")
  return Found(
    _address(env, _resolved(_first_pod(job, pod)), _KUBERNETES_PORT),
    job.spec.parallelism,
    int(env["JOB_COMPLETION_INDEX"]),
  )


def _first_pod(job: Any, pod: Any) -> str:
  """Returns the host name of the job's pod 0."""
  subdomain = job.metadata.labels.get("jobset.sigs.k8s.io/jobset-name") or pod.spec.subdomain
  if subdomain is None:
    raise RuntimeError("Kubernetes: the job needs a headless service, named as its subdomain")
  return f"{job.metadata.name}-0.{subdomain}"


# --- Addresses


def _address(env: Env, host: str, port: str) -> str:
  return f"{host}:{env.get('JAX_COORDINATOR_PORT') or port}"


def _resolved(host: str) -> str:
  """Waits until `host` has an address, as process 0 may start later, and returns `host`."""
  deadline = time.monotonic() + _RESOLVE_S
  while time.monotonic() < deadline:
    try:
      socket.gethostbyname(host)
      return host
    except socket.gaierror:
      time.sleep(5.0)
  raise RuntimeError(f"the coordinator's host {host} is not known")
