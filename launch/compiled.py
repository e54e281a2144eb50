"""A compiler's report on a program: memory, costs and collectives; also as a table."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from launch import chips
from udp_jax.benchmark import hlo

GIB = 2**30
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "": 1}
# Two passes of the TPU compiler have different messages for this.
_OUT_OF_MEMORY = re.compile(
  r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"
  r"|Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"
)


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
    analysis: `jax.stages.Compiled.cost_analysis()` of one device's program, or None.
    target: device that the program was compiled for.
    images: pictures in the global batch.
  """
  flops = (analysis or {}).get("flops")
  seconds = (analysis or {}).get("optimal_seconds")
  if not flops or not seconds or seconds < 0 or target.platform != "tpu":
    # The compiler reports a negative time if it does not know it.
    seconds = None
  moved = (analysis or {}).get("bytes accessed")
  return _costs(flops, moved, seconds, target, images)


def _costs(
  flops: float | None,
  moved: float | None,
  seconds: float | None,
  target: chips.Target,
  images: int,
) -> dict[str, Any]:
  mfu = None
  if flops and seconds and target.peak_flops:
    mfu = flops / target.peak_flops / seconds
  return {
    "tflop": flops / 1e12 if flops else None,
    "gigabytes": moved / 1e9 if moved else None,
    "seconds": seconds,
    "seconds_per_image": seconds / images if seconds else None,
    "mfu": mfu,
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

  tflop, gigabytes, seconds = total("tflop"), total("gigabytes"), total("seconds")
  flops = None if tflop is None else tflop * 1e12
  moved = None if gigabytes is None else gigabytes * 1e9
  return _costs(flops, moved, seconds, target, images)


def compile_program(
  lower: Callable[[], Any], target: chips.Target, images: int, *, effort: float, steps: int
) -> dict[str, Any]:
  """Lowers, compiles and describes one program.

  A program that does not fit, or that the compiler fails on, is described too: `fits` is then False
  or None, and `error` says why.
  """
  lowered = lower()
  start = time.monotonic()
  options = {"exec_time_optimization_effort": effort} if target.platform == "tpu" else None
  result: dict[str, Any] = {"fits": True, "error": None, "steps": steps}
  try:
    compiled = lowered.compile(compiler_options=options)
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
      "compile_seconds": time.monotonic() - start,
      "collectives": {},
      "loops": [],
      "cycles": None,
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
  analysis = compiled.cost_analysis() if target.platform == "tpu" else None
  return result | costs(analysis, target, images)


def mark_best(rows: list[dict[str, Any]]) -> None:
  """Sets `best` in the row of each topology that fits and has the highest MFU."""

  def mfu(row: dict[str, Any]) -> float:
    known = [row["one_to_one"], *row["programs"].values()]
    return next((costs["mfu"] for costs in known if costs and costs["mfu"]), 0.0)

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
