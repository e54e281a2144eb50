"""Compiles a run for accelerators that this machine lacks; reports memory, cost and predicted time.

  python -m launch.aot --config=cifar10 --topology=v5e:4x4
  python -m launch.aot --config=cifar10 --topology=v5e:16x16,v6e:16x16 --batches=64,128,256 \\
      --out=aot.json
  python -m launch.aot --config=cifar10 --kind=gpu --topology=h100,a100

Nothing is allocated and nothing runs. TPU targets need libtpu (`pip install "jax[tpu]"`) but no
TPU. A round is compiled as a run dispatches it; it shows memory and collectives. Its parts, one
step of each kind, show FLOPs, bytes and time, because a cost analysis counts the body of a loop
once; the round's costs are the parts' times their steps. All figures come from the compiler's
model, none is a measurement: the predicted time is its `optimal_seconds`, an estimate from the
FLOPs and bytes of each operation, not from a schedule. It is the same at every --effort, but large
programs may get none at the default, 0. The program depends on --effort: at -1 the compiler tries
few tilings, and by its own estimate of cycles the program is several times slower. Predict at -1,
run at 0.

GPU targets need jax's plugin for CUDA 12 or 13, and no GPU: h100, a100, l40s, rtx4090, b200, and
h100:8 or h100:2x8 for several; another GPU as AxBxC with --target_config=FILE. Attention and dtypes
are decided for the target. Its compiler gives no costs, so they are counted in the program
(`udp_jax.benchmark.roofline`): a lower bound of the time, from the products and bytes of each
kernel at rates that large ones are taken to reach, and a launch each. Nothing is tuned without a
GPU, whose own program may have other tiles and library algorithms. --effort is the TPU compiler's.

--out writes {"header", "rows"}. Each row is a topology with a batch:
  topology, platform, chips, devices, row, num_images, num_batches, global_batch_size,
  per_device_batch_size
  fits: whether the compiler found room; null if it failed for another reason (exit code 1)
  peak_gib, hbm_gib, spare_gib: of one device; the last is negative if the program does not fit
  best: whether this batch has the highest MFU of its topology's rows that fit
  programs: {"round"|"min"|"max"|"joint"|"step": program}; "joint" steps do both sides at once,
    "step" belongs to a method without a surrogate; the round's costs include all of its steps
  one_to_one: costs of one min and one max step together, null unless there are both
and a program:
  fits, error: why the compiler failed, or null; compile_seconds; steps: in one round
  memory_gib: {"arguments", "outputs", "donated", "temporaries", "code", "peak"}, of one device
  tflop, gigabytes: of one device, one step (or one round)
  seconds, seconds_per_image: predicted; per image of the global batch, for all devices together
  mfu: FLOPs / peak bfloat16 FLOPs per second / predicted seconds, 0 to 1
  kernels, bound_seconds, bound_mfu: of a GPU: how many run, the least time, and the share of the
    peak at it; bound_products, bound_bytes, bound_launches: the seconds of which it is the sum
  largest: the --top kernels that take longest; options: the compiler's, null if it failed
  collectives: by kind {"in_program", "executed", "bytes", "dtypes"}; an asynchronous pair is one
  cycles: the compiler's estimate for its schedule, loops' bodies once; see --effort
  loops: [{"body", "trip_count", "runs"}]; collectives inside are multiplied by `runs`
"""

from __future__ import annotations

import datetime
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments import _cli
from launch import chips, compiled
from udp_jax.errors import ConfigError

_TOPOLOGY = flags.DEFINE_list(
  "topology",
  None,
  "Slices, e.g. v5e:4x4,v6e:16x16 (v4, v5e, v5p, v6e), or GPUs, e.g. h100,a100:8.",
)
_KIND = flags.DEFINE_enum("kind", "tpu", ["tpu", "gpu"], "Kind of accelerator.")
_TARGET_CONFIG = flags.DEFINE_string(
  "target_config",
  None,
  "For GPUs that are not built in: file with XLA's description of the GPU (GpuTargetConfigProto).",
)
_EXPERIMENT = flags.DEFINE_string(
  "experiment", "eudp", "Experiment whose configs --config takes: eudp or udp."
)
_ROW = flags.DEFINE_string(
  "row", None, "Row of the study to compile. Default: the experiment's own."
)
_PER_DEVICE = flags.DEFINE_integer(
  "per_device_batch_size",
  None,
  "Pictures per device; replaces config.global_batch_size.",
  lower_bound=1,
)
_BATCHES = flags.DEFINE_list(
  "batches", None, "Several values of --per_device_batch_size, to find the best of each topology."
)
_NUM_IMAGES = flags.DEFINE_integer(
  "num_images",
  None,
  "Pictures to protect. Default: what the config's source holds, less the held-out ones.",
  lower_bound=1,
)
_PROGRAMS = flags.DEFINE_list(
  "programs", ["round", "min", "max"], "Which of round, min and max to compile."
)
_EFFORT = flags.DEFINE_float(
  "effort",
  -1.0,
  "The compiler's exec_time_optimization_effort, -1 to 1. At -1 it compiles several "
  "times faster, with the same FLOPs, bytes and predicted time, but a slower program.",
)
_TOP = flags.DEFINE_integer(
  "top", 0, "Number of largest kernels to list for each program for GPUs.", lower_bound=0
)
_OUT = flags.DEFINE_string("out", None, "JSON file for the results.")


def describe(
  config: Any,
  row: str,
  target: chips.Target,
  global_batch_size: int,
  wanted: Sequence[str],
  effort: float,
) -> dict[str, Any]:
  """Compiles the programs of one topology and batch; returns one row of the results."""
  from launch import programs as lib

  mesh = lib.make_mesh(target.devices, config)
  images = _NUM_IMAGES.value or lib.num_images(config)
  settings = lib.setting(config, row, mesh, target, images, global_batch_size)
  found: dict[str, dict[str, Any]] = {}

  def add(name: str, lower: Any, **counts: int) -> None:
    _say(f"{target.name}, batch {global_batch_size}: compiling {name}")
    found[name] = compiled.compile_program(
      lower, target, global_batch_size, effort=effort, top=_TOP.value, **counts
    )

  parts = lib.parts(settings)
  for part in parts:
    if part.name in wanted or len(parts) == 1:
      lower = lambda part=part: lib.lower_part(settings, part)
      add(part.name, lower, steps=part.steps, repeats=part.repeats)
  if "round" in wanted:
    add("round", lambda: lib.lower_round(settings), steps=1)
  complete = all(part.name in found for part in parts)
  if "round" in found and target.platform == "tpu":
    # The round's own analysis counts each loop once; the parts times their steps are exact.
    steps = {part.name: part.steps for part in parts}
    unknown = compiled.costs(None, target, images)
    found["round"] |= compiled.combine(found, steps, target, images) if complete else unknown
  both = complete and len(parts) == 2
  one_each = {part.name: 1 for part in parts}
  ratio = compiled.combine(found, one_each, target, global_batch_size) if both else None
  peaks = [program["memory_gib"]["peak"] for program in found.values()]
  peak = None if None in peaks else max(peaks)
  fits = [program["fits"] for program in found.values()]
  return {
    "topology": target.name,
    "platform": target.platform,
    "chips": target.num_chips,
    "devices": len(target.devices),
    "row": row,
    "num_images": images,
    "num_batches": settings.num_batches,
    "global_batch_size": global_batch_size,
    "per_device_batch_size": global_batch_size // mesh.size,
    "fits": None if None in fits else all(fits),
    "peak_gib": peak,
    "hbm_gib": target.hbm_gib,
    "spare_gib": None if target.hbm_gib is None or peak is None else target.hbm_gib - peak,
    "best": False,
    "programs": found,
    "one_to_one": ratio,
  }


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def _whole_numbers(words: Sequence[str], flag: str) -> list[int]:
  try:
    numbers = [int(word) for word in words]
  except ValueError:
    numbers = []
  if not numbers or min(numbers) < 1:
    raise ConfigError(f"--{flag} takes numbers of at least 1 with commas, got {','.join(words)!r}")
  return numbers


def _header(command: Sequence[str], config: Any) -> dict[str, Any]:
  versions = {}
  plugins = [plugin.packages[0] for plugin in chips.PLUGINS.values()]
  for package in ("jax", "jaxlib", "libtpu", *plugins, "flax", "optax"):
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return {
    "date": datetime.date.today().isoformat(),
    "command": " ".join(["python -m launch.aot", *command]),
    "versions": versions,
    "effort": _EFFORT.value,
    "config": config.to_dict(),
  }


def main(argv: Sequence[str]) -> int:
  """Compiles what the flags ask for; returns the exit code."""
  del argv
  config = _CONFIG.value
  if config is None or not _TOPOLOGY.value:
    raise ConfigError("--config and --topology are needed; see --help")
  if unknown := set(_PROGRAMS.value) - {"round", "min", "max"}:
    raise ConfigError(f"--programs: unknown {', '.join(sorted(unknown))}; known: round, min, max")
  if _PER_DEVICE.value and _BATCHES.value:
    raise ConfigError("--per_device_batch_size and --batches exclude each other")
  batches = [_PER_DEVICE.value] if _PER_DEVICE.value else []
  if _BATCHES.value is not None:
    batches = _whole_numbers(_BATCHES.value, "batches")
  chips.prepare_environment()
  from udp_jax.runtime import files
  from udp_jax.studies import settings

  settings.check_values(config)
  row = _ROW.value or _EXPERIMENT.value
  if _KIND.value == "tpu":
    targets = [chips.tpu_target(name) for name in _TOPOLOGY.value]
  else:
    described = Path(_TARGET_CONFIG.value) if _TARGET_CONFIG.value else None
    targets = [chips.gpu_target(name, described) for name in _TOPOLOGY.value]
  rows: list[dict[str, Any]] = []

  def save() -> None:
    if _OUT.value:
      files.write_json(_OUT.value, {"header": _header(sys.argv[1:], config), "rows": rows})

  save()  # Fails now, not after minutes of compiling, if the file cannot be written.
  for target in targets:
    sizes = [batch * len(target.devices) for batch in batches] or [config.global_batch_size]
    for size in sizes:
      rows.append(describe(config, row, target, size, _PROGRAMS.value, _EFFORT.value))
      compiled.mark_best(rows)
      save()  # Saved after each row, because compiling all of them takes long.
  print(compiled.format_table(rows))
  for listed in (compiled.format_notes(rows), compiled.format_largest(rows)):
    if listed:
      print(f"\n{listed}")
  problems = [
    f"{one['topology']}, batch {one['per_device_batch_size']}, {name}: {program['error']}"
    for one in rows
    for name, program in one["programs"].items()
    if program["error"]
  ]
  print("".join(f"\n{line}" for line in problems), end="\n" if problems else "")
  # A program that does not fit is a result; a failure of the compiler is an error.
  return int(any(one["fits"] is None for one in rows))


def _experiment(words: Sequence[str]) -> str:
  """Reads --experiment before the other flags, because --config names one of its configs."""
  for word, following in zip(words, [*words, ""][1:], strict=True):
    flag, equals, value = word.partition("=")
    if flag in ("--experiment", "-experiment"):
      name = value if equals else following
      if name in ("eudp", "udp"):
        return name
      print(f"error: unknown --experiment={name}; known: eudp, udp", file=sys.stderr)
      sys.exit(ConfigError.exit_code)
  return "eudp"


if __name__ == "__main__":
  _CONFIG = _cli.define_config(_experiment(sys.argv[1:]))
  _cli.run(main)
