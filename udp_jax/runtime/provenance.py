"""The provenance of a number: command, commit, hardware, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow", "udp-jax")
_SCRIPT = "udp-jax"
_COMMIT = "UDP_JAX_COMMIT"


def command() -> str:
  """Returns the command line of this process, as a user would type it."""
  spec = getattr(sys.modules["__main__"], "__spec__", None)
  if spec is None:
    script = Path(sys.argv[0]).name == _SCRIPT
    return shlex.join([*([_SCRIPT] if script else ["python", sys.argv[0]]), *sys.argv[1:]])
  return shlex.join(["python", "-m", spec.name, *sys.argv[1:]])


def commit() -> str:
  """Returns the source checkout's commit, marked if files were changed.

  Outside a checkout, as on a machine that got the files alone, it is what the environment variable
  UDP_JAX_COMMIT says; without that "".
  """
  here = Path(__file__).parent

  def git(*words: str) -> str | None:
    try:
      done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
      return None
    return done.stdout.strip() if done.returncode == 0 else None

  found = git("rev-parse", "--short=12", "HEAD")
  if not found:
    return os.environ.get(_COMMIT, "")
  return f"{found} (with uncommitted changes)" if git("status", "--porcelain", "-uno") else found


def hardware() -> dict[str, str]:
  """Returns the processor, number of cores, devices, backend and system; on GPUs also the card."""
  cpu = platform.processor() or platform.machine()
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
  except (OSError, StopIteration):
    pass  # On other systems than Linux, keep the platform module's answer.
  devices = jax.devices()
  found = {
    "processor": cpu,
    "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else "?"),
    "devices": f"{len(devices)} x {devices[0].device_kind}",
    "backend": jax.default_backend(),
    "system": f"{platform.system()} {platform.machine()}",
  }
  return found | {"gpu": _card(devices[0])} if found["backend"] == "gpu" else found


def _card(device: Any) -> str:
  """The GPU's name, driver and memory as `nvidia-smi` says; without that tool jax's name of it."""
  fields = "--query-gpu=name,driver_version,memory.total"
  command = ["nvidia-smi", fields, "--format=csv,noheader", f"--id={device.local_hardware_id or 0}"]
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
  except (OSError, subprocess.TimeoutExpired):
    return device.device_kind
  # One line with three fields; a message otherwise.
  name, *rest = done.stdout.strip().split(", ")
  if done.returncode or len(rest) != 2:
    return device.device_kind
  return f"{name}, driver {rest[0]}, {rest[1]}"


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the packages that matter."""
  found = {"python": platform.python_version()}
  for package in _PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found
