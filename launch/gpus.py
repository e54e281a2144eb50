"""NVIDIA GPUs by name, as XLA's compiler and the counter of `benchmark.roofline` need them.

The numbers are those of NVIDIA's data sheets and of the CUDA programming guide's table of compute
capabilities. `memory` is what the driver reports, less than the data sheet's by what error
correction and firmware keep. What a card reaches is assumed: 0.71 to 0.85 of its peaks; none of it
was measured here.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from udp_jax.benchmark.roofline import Reach
from udp_jax.errors import ConfigError

if TYPE_CHECKING:
  from udp_jax.ops.attention import Gpu

MIB = 2**20
# The part of a GPU's memory that jax takes at its start, unless the environment says another.
_MEMORY_FRACTION = 0.75


class Card(NamedTuple):
  """One GPU.

  Attributes:
    description: what the driver calls it.
    capability: NVIDIA's compute capability.
    cudnn: version of cuDNN that is assumed to be installed, 91500 for 9.15.0.
    cores: number of multiprocessors.
    fpus: float32 units of one multiprocessor.
    shared: shared memory of one multiprocessor, bytes.
    shared_optin: most shared memory that one block may ask for, bytes.
    threads: most threads of one multiprocessor.
    l2: size of the second cache, bytes.
    clock: boost clock, GHz.
    bandwidth: of the memory, bytes per second.
    memory: bytes.
    peak_flops: dense bfloat16 FLOPs per second.
    reach: what large kernels are taken to reach.
  """

  description: str
  capability: tuple[int, int]
  cudnn: int
  cores: int
  fpus: int
  shared: int
  shared_optin: int
  threads: int
  l2: int
  clock: float
  bandwidth: float
  memory: int
  peak_flops: float
  reach: Reach


CARDS = {
  "h100": Card(
    *("NVIDIA H100 80GB HBM3", (9, 0), 91500, 132, 128, 233472, 232448, 2048),
    *(50 * MIB, 1.98, 3352.32e9, 84978434048, 989e12, Reach(700e12, 2800e9)),
  ),
  "a100": Card(
    *("NVIDIA A100-SXM4-80GB", (8, 0), 91500, 108, 64, 167936, 166912, 2048),
    *(40 * MIB, 1.41, 2039e9, 85100068864, 312e12, Reach(240e12, 1700e9)),
  ),
  "l40s": Card(
    *("NVIDIA L40S", (8, 9), 91500, 142, 128, 102400, 101376, 1536),
    *(96 * MIB, 2.52, 864e9, 47_700_000_000, 362e12, Reach(260e12, 720e9)),
  ),
  "rtx4090": Card(
    *("NVIDIA GeForce RTX 4090", (8, 9), 91500, 128, 128, 102400, 101376, 1536),
    *(72 * MIB, 2.52, 1008e9, 25_400_000_000, 165e12, Reach(140e12, 850e9)),
  ),
  # 9.23 is the first cuDNN with the gradient of heads of 256 channels on this card.
  "b200": Card(
    *("NVIDIA B200", (10, 0), 92300, 148, 128, 233472, 232448, 2048),
    *(253 * MIB // 2, 1.965, 7672e9, 191514411008, 2250e12, Reach(1600e12, 6400e9)),
  ),
}


def parse(name: str) -> tuple[Card, str] | None:
  """Parses "h100", "h100:8" (GPUs of one host) or "h100:2x8" (hosts, GPUs of each).

  Returns:
    The card, and the topology as jax takes it, "1xHOSTSxGPUS"; None if the name is no card's.

  Raises:
    ConfigError: the name is a card's, but what follows is no number of GPUs.
  """
  kind, _, shape = name.partition(":")
  if kind not in CARDS:
    return None
  found = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)", shape or "1")
  if found is None or name.endswith(":"):
    raise ConfigError(f"unknown topology {name!r}: give {kind}, {kind}:GPUS or {kind}:HOSTSxGPUS")
  return CARDS[kind], f"1x{found[1] or 1}x{found[2]}"


def target_text(card: Card) -> str:
  """Returns the card as XLA's `GpuTargetConfigProto`, as text."""
  major, minor = card.capability
  cudnn = (card.cudnn // 10000, card.cudnn // 100 % 100, card.cudnn % 100)
  return f"""\
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {card.shared}
  threads_per_core_limit: {card.threads}
  core_count: {card.cores}
  fpus_per_core: {card.fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {card.bandwidth:.0f}
  l2_cache_size: {card.l2}
  clock_rate_ghz: {card.clock}
  device_memory_size: {card.memory}
  shared_memory_per_block_optin: {card.shared_optin}
  cuda_compute_capability {{
    major: {major}
    minor: {minor}
  }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
runtime_version {{
  major: 13
  minor: 0
}}
dnn_version_info {{
  major: {cudnn[0]}
  minor: {cudnn[1]}
  patch: {cudnn[2]}
}}
device_description_str: "{card.description}"
"""


class Described(NamedTuple):
  """What a description of a GPU says.

  Attributes:
    gpu: compute capability and cuDNN.
    memory: bytes, or None.
    reach: what its kernels are taken to reach; the rate of products is not in a description.
  """

  gpu: Gpu
  memory: int | None
  reach: Reach | None


def described(text: str) -> Described:
  """Reads a `GpuTargetConfigProto`, as text; fields that it lacks are zero, as in XLA."""
  from udp_jax.ops.attention import Gpu

  def number(field: str, section: str) -> int | None:
    found = re.search(rf"\b{field}:\s*(\d+)", section)
    return int(found[1]) if found else None

  def section(name: str) -> str:
    found = re.search(rf"\b{name}\s*:?\s*\{{([^}}]*)\}}", text)
    return found[1] if found else ""

  capability, cudnn = section("cuda_compute_capability"), section("dnn_version_info")
  parts = [number(field, cudnn) or 0 for field in ("major", "minor", "patch")]
  bandwidth = number("memory_bandwidth", text)
  return Described(
    Gpu(
      (number("major", capability) or 0, number("minor", capability) or 0),
      10000 * parts[0] + 100 * parts[1] + parts[2] if cudnn else None,
    ),
    number("device_memory_size", text),
    Reach(float("inf"), 0.84 * bandwidth) if bandwidth else None,
  )


def memory_fraction() -> float:
  """Returns the part of a GPU's memory that jax uses.

  Raises:
    ConfigError: XLA_PYTHON_CLIENT_MEM_FRACTION is no number above 0.
  """
  text = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "")
  try:
    fraction = float(text) if text else _MEMORY_FRACTION
  except ValueError:
    fraction = 0.0
  if not 0 < fraction <= 1:
    raise ConfigError(f"XLA_PYTHON_CLIENT_MEM_FRACTION is a number from 0 to 1, got {text!r}")
  return fraction
