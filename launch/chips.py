"""Accelerators by name: their peak rates and memory, and compilers for those that are absent.

Peaks and memory are the vendor's figures (Cloud TPU documentation, "System architecture" of each
version).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from launch import gpus
from udp_jax.benchmark.roofline import Reach
from udp_jax.errors import ConfigError, MissingDataError

if TYPE_CHECKING:
  from udp_jax.ops.attention import Gpu


class Chip(NamedTuple):
  """One chip.

  Attributes:
    peak_flops: peak bfloat16 FLOPs per second.
    hbm_gib: memory in GiB.
    config: how libtpu runs the chip: "megacore" makes one device of a chip's two cores.
    host: number of chips of one host along each axis.
  """

  peak_flops: float
  hbm_gib: float
  config: str = "default"
  host: tuple[int, int, int] = (2, 2, 1)


TPUS = {
  "v4": Chip(275e12, 32, "megacore"),
  "v5e": Chip(197e12, 16),
  "v5p": Chip(459e12, 95, "megacore"),
  "v6e": Chip(918e12, 32),
}
INSTALL_TPU = 'pip install "jax[tpu]"'


class Plugin(NamedTuple):
  """One of jax's CUDA plugins.

  Attributes:
    module: name under which it is imported.
    driver: oldest NVIDIA driver that runs its programs; compiling needs none.
    packages: distributions needed for compiling; those of jax have jax's own version.
    cuda: CUDA packages needed for compiling.
  """

  module: str
  driver: int
  packages: tuple[str, ...]
  cuda: tuple[str, ...] = ()


# In the order in which jax tries them. The compiler of jax 0.11.2 crashed without CUDA 13's
# libdevice; the plugin for CUDA 12 includes its own.
PLUGINS = {
  "13": Plugin(
    "jax_cuda13_plugin",
    580,
    ("jax-cuda13-plugin", "jax-cuda13-pjrt"),
    ("nvidia-nvvm", "nvidia-cuda-nvcc"),
  ),
  "12": Plugin("jax_cuda12_plugin", 525, ("jax-cuda12-plugin", "jax-cuda12-pjrt")),
}


def install_gpu() -> str:
  """Says how to install either plugin for compiling, at the version of the installed jax."""
  version = importlib.metadata.version("jax")
  return ", or ".join(
    " ".join(["pip install --no-deps", *(f"{name}=={version}" for name in plugin.packages)])
    + "".join(f" {name}" for name in plugin.cuda)
    + f" (CUDA {cuda}, whose programs run from driver {plugin.driver} on)"
    for cuda, plugin in PLUGINS.items()
  )


class Target(NamedTuple):
  """Devices to compile for.

  Attributes:
    name: name on the command line, "v5e:4x4" or "h100:8".
    platform: "tpu" or "cuda".
    devices: abstract devices; they hold nothing and run nothing.
    num_chips: number of chips; each is one device, except for a v4 without megacore.
    peak_flops: bfloat16 FLOPs per second of one device; None for a device not in the table.
    hbm_gib: memory of one device in GiB, of a GPU the part that jax uses; None for a device not in
      the table.
    gpu: compute capability and cuDNN of a GPU, which decide about its attention.
    reach: rates that large kernels of a GPU are taken to reach.
  """

  name: str
  platform: str
  devices: list[Any]
  num_chips: int
  peak_flops: float | None
  hbm_gib: float | None
  gpu: Gpu | None = None
  reach: Reach | None = None


def prepare_environment() -> None:
  """Sets variables that jax and libtpu read when loaded. Call it before importing jax."""
  os.environ["JAX_PLATFORMS"] = "cpu"
  # A cache would store programs for absent devices, but they cannot be read from it.
  os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
  # Without a TPU there is no metadata server to ask and no chip to lock.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")


def parse_tpu(name: str) -> tuple[str, tuple[int, ...]]:
  """Parses "v5e:4x4" to ("v5e", (4, 4)). Raises ConfigError for anything else."""
  match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
  if match is None or match[1] not in TPUS:
    known = ", ".join(TPUS)
    raise ConfigError(f"unknown topology {name!r}: give KIND:AxB or KIND:AxBxC, KIND of {known}")
  return match[1], tuple(int(n) for n in match[2].split("x"))


def tpu_target(name: str) -> Target:
  """Returns a slice of TPUs, e.g. "v5e:16x16".

  Raises:
    MissingDataError: libtpu, the compiler, is not installed.
    ConfigError: there is no such slice.
  """
  kind, shape = parse_tpu(name)
  if importlib.util.find_spec("libtpu") is None:
    raise MissingDataError(
      f"compiling for TPUs needs libtpu, which is not installed: {INSTALL_TPU}"
    )
  from jax.experimental import topologies

  chip = TPUS[kind]
  # A slice may be smaller than a host, of which it is then a part.
  padded = (*shape, 1, 1)[:3]
  bounds = tuple(min(h, s) for h, s in zip(chip.host, padded, strict=True))
  try:
    found = topologies.get_topology_desc(
      name, platform="tpu", chip_config_name=chip.config, chips_per_host_bounds=bounds
    )
  except (RuntimeError, NotImplementedError) as error:
    raise ConfigError(f"no topology {name}: {str(error).splitlines()[0]}") from error
  devices: list[Any] = list(found.devices)
  chips = len({tuple(device.coords) for device in devices})
  share = chips / len(devices)
  return Target(name, "tpu", devices, chips, chip.peak_flops * share, chip.hbm_gib * share)


def gpu_target(name: str, target_config: Path | None = None) -> Target:
  """Returns GPUs by name, or of the kind that a target config describes.

  Args:
    name: "h100", "h100:8" or "h100:2x8" (hosts, GPUs of each), a card of `gpus.CARDS`; with a
      target config "PARTITIONSxHOSTSxGPUS", e.g. "1x1x8".
    target_config: file with XLA's `GpuTargetConfigProto` as text, e.g. from `gpu_specs` in XLA.

  Raises:
    MissingDataError: the plugin or the file is missing.
    ConfigError: the plugin, the file and the topology do not fit.
  """
  named = gpus.parse(name)
  if named is None and re.fullmatch(r"\d+x\d+x\d+", name) is None:
    raise ConfigError(
      f"unknown GPU topology {name!r}: give KIND, KIND:GPUS or KIND:HOSTSxGPUS, KIND of "
      f"{', '.join(gpus.CARDS)}; or AxBxC, e.g. 1x1x8, with --target_config=FILE"
    )
  if named is None and target_config is None:
    raise ConfigError(
      f"--topology={name} needs --target_config=FILE, XLA's description of the GPU; built in are "
      f"{', '.join(gpus.CARDS)}"
    )
  if named is not None and target_config is not None:
    raise ConfigError(f"--target_config describes another GPU than --topology={name}: give AxBxC")
  if not any(importlib.util.find_spec(plugin.module) for plugin in PLUGINS.values()):
    raise MissingDataError(
      f"compiling for GPUs needs one of jax's CUDA plugins, none is installed: {install_gpu()}"
    )
  card, topology = named or (None, name)
  text = gpus.target_text(card) if card else _read(Path(target_config or ""))
  from jax.experimental import topologies

  try:
    found = topologies.get_topology_desc("", platform="cuda", topology=topology, target_config=text)
  except (RuntimeError, NotImplementedError) as error:
    raise ConfigError(f"no GPU topology {topology}: {str(error).splitlines()[0]}") from error
  devices = list(found.devices)
  seen = gpus.described(text)
  hbm_gib = seen.memory * gpus.memory_fraction() / 2**30 if seen.memory else None
  return Target(
    name if card else f"gpu:{topology}",
    "cuda",
    devices,
    len(devices),
    card.peak_flops if card else None,
    hbm_gib,
    seen.gpu,
    card.reach if card else seen.reach,
  )


def _read(target_config: Path) -> str:
  try:
    return target_config.read_text("utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise MissingDataError(f"cannot read --target_config={target_config}: {error}") from error
