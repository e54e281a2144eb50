"""Formats bench.json as tables: aligned text for a terminal, and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from udp_jax.report.text import MISSING, format_number

# Fields of a race's row; a field that was not measured is None, and `reason` says why.
ROW_FIELDS = (
  *("work", "model", "batch", "dtype", "framework", "variant", "median_s", "p10_s", "p90_s"),
  *(
    "images_per_s",
    "cycles",
    "compile_s",
    "warmup_s",
    "peak_rss_mib",
    "peak_of",
    "compile_peak_rss_mib",
  ),
  *("cpu_s", "idle_cpu_s", "tflop", "percent_of_peak", "ratio", "best_peer", "ratio_as_written"),
  *("ratio_separate", "ratio_memory", "reason"),
)

# Fields that a race's row has only where they tell something.
MORE_FIELDS = (
  *("race", "precision", "remat", "xla_flags", "cached", "device_mib", "process_mib"),
  *("mfu", "mfu_of"),
)

# Section -> (title, note for readers, columns: (head, field, decimals or None)).
Columns = tuple[tuple[str, str, int | None], ...]
_RACES: Columns = (
  ("race", "race", None),
  *(("work", "work", None), ("model", "model", None), ("batch", "batch", None)),
  *(("dtype", "dtype", None), ("precision", "precision", None), ("remat", "remat", None)),
  ("XLA flags", "xla_flags", None),
  *(("framework", "framework", None), ("variant", "variant", None)),
  *(("median s", "median_s", 4), ("p10", "p10_s", 4), ("p90", "p90_s", 4)),
  ("images/s", "images_per_s", 2),
  *(("compile s", "compile_s", 1), ("cached", "cached", None)),
  *(("peak MiB", "peak_rss_mib", 0), ("device MiB", "device_mib", 0), ("TFLOP", "tflop", 4)),
  *(("% of peak", "percent_of_peak", 1), ("MFU %", "mfu", 1), ("FLOPs by", "mfu_of", None)),
  *(("/ best peer", "ratio", 2), ("/ as written", "ratio_as_written", 2)),
  ("/ separate", "ratio_separate", 2),
  *(("memory / peer's", "ratio_memory", 2), ("", "reason", None)),
)
_SECTIONS: dict[str, tuple[str, str, Columns]] = {
  "rows": (
    "Races",
    "Interleaved runs, each contestant in a process of its own. Times are of one step; below 1 is "
    "faster (or smaller) than the fastest peer of the same race. Compilation and warm-up are "
    "apart. Peak memory is of one step. TFLOP: matrix products and convolutions of the compiled "
    "program (ours) or as PyTorch counts them; % of the best rate of a matrix product of that "
    "dtype, in either framework. Work `impress` is a step of the purifier for all pictures of the "
    "batch: at once, but for `as_written`, which takes one after the other.",
    _RACES,
  ),
  "primitives": (
    "Primitives: inside a scan against at top level",
    "Flagged above 1.2. Method xla is JAX's own derivative, at a batch of 2, for comparison.",
    (
      *(("primitive", "primitive", None), ("shape", "shape", None), ("dtype", "dtype", None)),
      *(("what", "what", None), ("top ms", "top_ms", 3), ("in scan ms", "scan_ms", 3)),
      *(("ratio", "ratio", 2), ("flagged", "flagged", None), ("", "reason", None)),
    ),
  ),
  "cost": (
    "Cost against work",
    "One axis changes at a time. A round is `steps` train steps of a batch and a perturb step of "
    "every batch; time per image is over all of them.",
    (
      *(("axis", "axis", None), ("model", "model", None), ("batch", "batch", None)),
      *(("resolution", "resolution", None), ("steps", "steps", None)),
      *(("batches", "num_batches", None), ("round s", "round_s", 4)),
      *(("ms / image", "ms_per_image_step", 3), ("TFLOP", "tflop", 4)),
      *(("peak MiB", "peak_rss_mib", 0), ("", "reason", None)),
    ),
  ),
  "scaling": (
    "Devices, forced on one CPU",
    "All share the same cores and the same work, so this shows correctness and overhead, not "
    "speed-up. `differs`: fraction of delta's values that are not, bit for bit, one device's.",
    (
      *(("devices", "devices", None), ("model", "model", None), ("batch", "batch", None)),
      *(("round s", "round_s", 4), ("compile s", "compile_s", 1)),
      *(("collectives", "collectives", None), ("differs", "differs", 6)),
      *(("largest, levels", "max_difference_255", 3), ("", "reason", None)),
    ),
  ),
  "host": (
    "Host overhead of a round",
    "`dispatch` is a program with the round's arguments and results that computes nothing, and the "
    "transfer of the losses; overhead is its share of a round. Where measured, rounds in one "
    "dispatch are compared with one dispatch each.",
    (
      *(("model", "model", None), ("batch", "batch", None), ("round s", "round_s", 4)),
      *(("dispatch s", "dispatch_s", 5), ("overhead %", "overhead_percent", 3)),
      *(("rounds", "num_rounds", None), ("one dispatch s", "one_dispatch_s", 4)),
      *(("many s", "many_dispatches_s", 4), ("difference %", "difference_percent", 2)),
      ("", "reason", None),
    ),
  ),
  "compile": (
    "Compile time of the round",
    "Cold, and in a second process from the persistent cache that the first one filled.",
    (
      *(("model", "model", None), ("batch", "batch", None), ("trace s", "trace_cold_s", 1)),
      *(("cold s", "compile_cold_s", 1), ("trace again s", "trace_cached_s", 1)),
      *(("cached s", "compile_cached_s", 1), ("cache MiB", "cache_mib", 1), ("", "reason", None)),
    ),
  ),
}


_LEFT_OUT = "Left out: the same command without --seconds, or with more, goes on with them"


def race_row(known: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a row of a race with every field of `ROW_FIELDS`, None if `known` does not have it."""
  more = {field: known[field] for field in MORE_FIELDS if _tells(known.get(field))}
  return {field: known.get(field) for field in ROW_FIELDS} | more


def text(report: Mapping[str, Any]) -> str:
  """Formats the whole report for a terminal."""
  parts = ["\n".join(_header(report["header"]))]
  for title, note, heads, cells in _tables(report):
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    numeric = [all(_is_number(row[i]) for row in cells) for i in range(len(heads))]
    lines = [
      "  ".join(
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(row, widths, numeric, strict=True)
      ).rstrip()
      for row in (heads, ["-" * width for width in widths], *cells)
    ]
    parts.append("\n".join([f"{title}. {note}", "", *lines]))
  if left_out := report.get("left_out"):
    lines = [f"  {row['task']}: {row['reason']}" for row in left_out]
    parts.append("\n".join([_LEFT_OUT, *lines]))
  return "\n\n".join(parts)


def markdown(report: Mapping[str, Any]) -> str:
  """Formats the whole report as a Markdown file."""
  parts = [f"# {report['header']['title']}"]
  parts += ["\n".join(f"- {line}" for line in _header(report["header"])[1:])]
  for title, note, heads, cells in _tables(report):
    rows = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in r] for r in cells)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    parts += [f"## {title}", note, table]
  if left_out := report.get("left_out"):
    lines = [f"- `{row['task']}`: {row['reason']}" for row in left_out]
    parts += ["## Left out", f"{_LEFT_OUT}.", "\n".join(lines)]
  return "\n\n".join(parts) + "\n"


def _header(header: Mapping[str, Any]) -> list[str]:
  hardware, versions = header["hardware"], header["versions"]
  peaks = [
    f"{framework} {' / '.join(f'{rate:.0f} ({dtype})' for dtype, rate in rates.items())}"
    for framework, rates in header["matmul_gflops"].items()
  ]
  threads = ", ".join(f"{name} {count}" for name, count in header["threads"].items())
  lines = [
    header["title"],
    f"command: {header['command']}",
    f"date: {header['date']}, commit {header['commit'] or 'unknown'}",
    f"hardware: {hardware['processor']}, {hardware['cores']} cores; threads: {threads}",
    "versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()),
    f"best matrix product, GFLOP/s: {'; '.join(peaks)}",
  ]
  if header.get("copy_gbs"):
    copies = "; ".join(f"{framework} {rate:.0f}" for framework, rate in header["copy_gbs"].items())
    lines.append(f"best copy, GB/s read and written: {copies}")
  if header.get("without_torch"):
    lines.append(f"without PyTorch: {header['without_torch']}")
  lines += [f"not measured: {what}: {why}" for what, why in header.get("unmeasured", {}).items()]
  if hardware.get("gpu"):
    lines.insert(4, f"GPU: {hardware['gpu']}")
  return [*lines, header["notice"]] if header["notice"] else lines


def _tables(report: Mapping[str, Any]):
  """Yields (title, note, heads, rows of cells) of the sections with rows; drops empty columns."""
  for section, (title, note, columns) in _SECTIONS.items():
    rows = report[section]
    used = [c for c in columns if any(_tells(row.get(c[1])) for row in rows)]
    if rows:
      cells = [[_cell(row.get(field), digits) for _, field, digits in used] for row in rows]
      yield title, note, [head for head, _, _ in used], cells


def _tells(value: Any) -> bool:
  return value is not None and value is not False and value != ""


def _cell(value: Any, digits: int | None) -> str:
  if isinstance(value, bool):
    return "yes" if value else ""
  if digits is not None:
    return format_number(value, digits)
  return MISSING if value is None else str(value)


def _is_number(cell: str) -> bool:
  return cell == MISSING or cell.replace(".", "", 1).lstrip("-").isdigit()


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns one line per race: our fastest form against the fastest peer."""
  lines = []
  races: dict[tuple, list[Mapping[str, Any]]] = {}
  for row in rows:
    if row["median_s"] is not None:
      key = (row.get("race"), row["work"], row["model"], row["batch"], row["dtype"])
      races.setdefault(key, []).append(row)
  for (name, work, model, batch, dtype), found in races.items():
    ours = [row for row in found if row["framework"] == "jax" and row["ratio"] is not None]
    if ours:
      best = min(ours, key=lambda row: row["ratio"])
      lines.append(
        f"{f'{name}: ' if name else ''}{work} {model} batch {batch} {dtype}: "
        f"{best['ratio']:.2f} of {best['best_peer']} ({best['variant']})"
      )
  return lines
