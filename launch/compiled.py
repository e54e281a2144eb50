"""A compiler's report on a program: memory, costs and collectives; also as a table."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from launch import chips
from udp_jax.benchmark import hlo, roofline

GIB = 2**30
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "": 1}
# Two passes of the TPU compiler have different messages for this.
_OUT_OF_MEMORY = re.compile(
  r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"
  r"|Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"
)
# Without a GPU nothing can be timed, so nothing is tuned. Some products of Stable Diffusion have no
# tiles among the compiler's guesses then; those of cuBLAS need none.
_NO_TUNING = {"xla_gpu_autotune_level": 0}
_NO_TILES = "Couldn't find output tile sizes"
_GPU_OPTIONS = (_NO_TUNING, {**_NO_TUNING, "xla_gpu_enable_triton_gemm": False})


def memory_gib(stats: Any) -> dict[str, float]:
  """Converts `jax.stages.Compiled.memory_analysis()` to GiB.

  The peak counts a donated argument and its output once.
  """
  parts = {
    "arguments": stats.argument_size_in_bytes,
    "outputs": stats.output_size_in_bytes,
    "donated": stats.alias_size_in_bytes,
    "temporaries": stats.temp_size_in_bytes,
    "code": stats.generated_code_size_in_bytes,
  }
  parts["peak"] = sum(parts.values()) - 2 * parts["donated"]
  return {name: size / GIB for name, size in parts.items()}


def out_of_memory(message: str) -> tuple[float, float] | None:
  """Parses (GiB needed, GiB available) from a compiler's message; None for other messages."""
  found = _OUT_OF_MEMORY.search(message)
  if found is None:
    return None
  numbers = [part for part in found.groups() if part is not None]
  wanted, there = (float(numbers[i]) * _UNITS[numbers[i + 1]] / GIB for i in (0, 2))
  return wanted, there


def costs(analysis: dict[str, float] | None, target: chips.Target, images: int) -> dict[str, Any]:
  """Returns the costs of one step on `images` pictures; unknown costs are None.

  Args:
    analysis: `jax.stages.Compiled.cost_analysis()` of one device's program for a TPU, or None.
    target: device that the program was compiled for.
    images: pictures in the global batch.
  """
  known = analysis or {}
  flops, moved, seconds = (known.get(k) for k in ("flops", "bytes accessed", "optimal_seconds"))
  if not flops or not seconds or seconds < 0:
    # The compiler reports a negative time if it does not know it.
    seconds = None
  found = {
    "tflop": flops / 1e12 if flops else None,
    "gigabytes": moved / 1e9 if moved else None,
    "seconds": seconds,
  }
  return _costs(found, target, images)


def bound(found: roofline.Bound, target: chips.Target, images: int, repeats: int) -> dict[str, Any]:
  """Returns the costs of one step of a program for a GPU that takes `repeats` of them."""
  sums = {
    "tflop": found.tflop,
    "gigabytes": found.gigabytes,
    "kernels": found.kernels,
    "bound_seconds": found.seconds,
    **{f"bound_{part}": seconds for part, seconds in found.parts.items()},
  }
  return _costs({name: value / repeats for name, value in sums.items()}, target, images)


# What adds up over steps.
_SUMS = (
  *("tflop", "gigabytes", "seconds", "kernels"),
  *("bound_seconds", "bound_products", "bound_bytes", "bound_launches"),
)


def _costs(known: Mapping[str, float | None], target: chips.Target, images: int) -> dict[str, Any]:
  sums = {name: known.get(name) for name in _SUMS}
  tflop, seconds = sums["tflop"], sums["seconds"]

  def share(seconds: float | None) -> float | None:
    if not tflop or not seconds or not target.peak_flops:
      return None
    return 1e12 * tflop / target.peak_flops / seconds

  return {
    **sums,
    "seconds_per_image": seconds / images if seconds else None,
    "mfu": share(seconds),
    "bound_mfu": share(sums["bound_seconds"]),
  }


def combine(
  programs: dict[str, dict[str, Any]], steps: dict[str, int], target: chips.Target, images: int
) -> dict[str, Any]:
  """Adds the costs of several programs, each run `steps` times; None if one is unknown."""
  chosen = [(programs[name], count) for name, count in steps.items()]

  def total(field: str) -> float | None:
    if any(program[field] is None for program, _ in chosen):
      return None
    return sum(program[field] * count for program, count in chosen)

  return _costs({name: total(name) for name in _SUMS}, target, images)


def compile_program(
  lower: Callable[[], Any],
  target: chips.Target,
  images: int,
  *,
  effort: float,
  steps: int,
  repeats: int = 1,
  top: int = 0,
) -> dict[str, Any]:
  """Lowers, compiles and describes one program.

  A program that does not fit, or that the compiler fails on, is described too: `fits` is then False
  or None, and `error` says why.

  Args:
    lower: makes the lowered program.
    target: devices to compile for.
    images: pictures in the global batch.
    effort: the TPU compiler's exec_time_optimization_effort.
    steps: number of steps of this kind in one round.
    repeats: number of steps in the program, as `programs.Part` says.
    top: number of kernels to list, of programs for GPUs.
  """
  lowered = lower()
  start = time.monotonic()
  tried: Sequence[dict[str, Any]] = _GPU_OPTIONS
  if target.platform == "tpu":
    tried = ({"exec_time_optimization_effort": effort},)
  result: dict[str, Any] = {"fits": True, "error": None, "steps": steps}
  try:
    compiled, result["options"] = _compile(lowered, tried)
  except RuntimeError as error:
    sizes = out_of_memory(str(error))
    result |= (
      {"fits": False, "error": f"wants {sizes[0]:.2f} GiB of {sizes[1]:.2f}"}
      if sizes
      else {
        "fits": None,
        "error": str(error).splitlines()[0],
      }
    )
    result |= {
      "options": None,
      "compile_seconds": time.monotonic() - start,
      "collectives": {},
      "loops": [],
      "cycles": None,
      "largest": [],
    }
    result["memory_gib"] = {"peak": sizes[0] if sizes else None}
    return result | costs(None, target, images)
  result["compile_seconds"] = time.monotonic() - start
  result["memory_gib"] = memory_gib(compiled.memory_analysis())
  if target.hbm_gib is not None and result["memory_gib"]["peak"] > target.hbm_gib:
    result |= {"fits": False, "error": f"more than {target.hbm_gib:g} GiB"}
  program = hlo.parse(compiled.as_text())
  result["collectives"] = hlo.summary(hlo.collectives(program))
  result["loops"] = [loop._asdict() for loop in hlo.loops(program)]
  result["cycles"] = hlo.cycles(program)
  result["largest"] = []
  if target.reach is None:
    analysis = compiled.cost_analysis() if target.platform == "tpu" else None
    return result | costs(analysis, target, images)
  kernels = roofline.kernels(program, target.reach)
  result["largest"] = [kernel._asdict() for kernel in roofline.largest(kernels, top)]
  return result | bound(roofline.bound(kernels, target.reach), target, images, repeats)


def _compile(lowered: Any, tried: Sequence[dict[str, Any]]) -> tuple[Any, dict[str, Any]]:
  """Compiles with the first options under which the compiler finds tiles; returns them too."""
  for options in tried[:-1]:
    try:
      return lowered.compile(compiler_options=options), options
    except RuntimeError as error:
      if _NO_TILES not in str(error):
        raise
  return lowered.compile(compiler_options=tried[-1]), tried[-1]


def mark_best(rows: list[dict[str, Any]]) -> None:
  """Sets `best` in the row of each topology that fits and has the highest MFU, or its bound."""

  def mfu(row: dict[str, Any]) -> float:
    known = [row["one_to_one"], *row["programs"].values()]
    found = (costs["mfu"] or costs["bound_mfu"] for costs in known if costs)
    return next((share for share in found if share), 0.0)

  for name in {row["topology"] for row in rows}:
    candidates = [row for row in rows if row["topology"] == name and row["fits"] and mfu(row)]
    for row in candidates:
      row["best"] = row is max(candidates, key=mfu)


_COLUMNS = (
  ("topology", 12),
  ("chips", 5),
  ("batch/dev", 9),
  ("program", 9),
  ("fits", 4),
  ("peak GiB", 8),
  ("spare", 7),
  ("TFLOP", 10),
  ("GB moved", 10),
  ("predicted s", 11),
  ("us/image", 9),
  ("MFU %", 6),
  ("kernels", 8),
  ("bound ms", 9),
  ("share %", 7),
  ("compile s", 9),
  ("collectives", 0),
)


def format_table(rows: list[dict[str, Any]]) -> str:
  """Formats the results, one line per program; `*` marks the best batch of a topology."""
  lines = ["  ".join(f"{name:>{width}}" for name, width in _COLUMNS)]
  for row in rows:
    named = dict(row["programs"])
    if row["one_to_one"]:
      named["1:1"] = row["one_to_one"]
    for name, program in named.items():
      memory = program.get("memory_gib")
      peak = memory["peak"] if memory else None
      spare = None if peak is None or row["hbm_gib"] is None else row["hbm_gib"] - peak
      per_image = program.get("seconds_per_image")
      cells = [
        row["topology"],
        str(row["chips"]),
        f"{row['per_device_batch_size']}{'*' * row['best']}",
        name,
        "" if memory is None else {True: "yes", False: "NO", None: "?"}[program["fits"]],
        _number(peak, 2),
        _number(spare, 2),
        _number(program["tflop"], 3),
        _number(program.get("gigabytes"), 2),
        _number(program["seconds"], 5),
        _number(per_image and 1e6 * per_image, 3),
        _number(program["mfu"] and 100 * program["mfu"], 1),
        _number(program["kernels"], 0),
        _number(program["bound_seconds"] and 1e3 * program["bound_seconds"], 2),
        _number(program["bound_mfu"] and 100 * program["bound_mfu"], 1),
        _number(program.get("compile_seconds"), 0),
        _collectives(program.get("collectives")),
      ]
      pairs = zip(cells, _COLUMNS, strict=True)
      lines.append("  ".join(f"{cell:>{width}}" for cell, (_, width) in pairs).rstrip())
  return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
  return "-" if value is None else f"{value:.{digits}f}"


def _collectives(table: dict[str, dict[str, Any]] | None) -> str:
  if table is None:
    return ""
  counts = (
    f"{row['in_program']} {kind} ({'+'.join(row['dtypes'])})" for kind, row in table.items()
  )
  return ", ".join(counts) or "none"


def format_notes(rows: list[dict[str, Any]]) -> str:
  """Says of which programs all products are library calls, one a line; "" if of none.

  Their bytes and kernels are not to be compared with those of programs with Triton's products.
  """
  return "\n".join(
    f"{row['topology']}, batch {row['per_device_batch_size']}, {name}: without Triton's products, "
    "for some of which XLA found no tiles untuned"
    for row in rows
    for name, program in row["programs"].items()
    if (program["options"] or {}).get("xla_gpu_enable_triton_gemm") is False
  )


def format_largest(rows: list[dict[str, Any]]) -> str:
  """Formats the largest kernels of each program, one a line; "" if none were listed."""
  lines = []
  for row in rows:
    for name, program in row["programs"].items():
      lines += [f"{row['topology']}, {name}:"] if program["largest"] else []
      lines += [
        f"  {one['runs']:>6} x {1e6 * one['seconds']:8.1f} us  {one['flops'] / 1e9:8.1f} GFLOP  "
        f"{one['bytes'] / 1e6:8.1f} MB  {one['kind']}  {one['op_name']}"
        for one in program["largest"]
      ]
  return "\n".join(lines)
