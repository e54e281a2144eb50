"""The plain forms of a report: numbers as text, the terminal's table, and `report.json`."""

from __future__ import annotations

import json
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from udp_jax.runtime import files

MISSING = "-"


def finite(value: Any) -> float | None:
  """Returns `value` as a float, or None if it is None, NaN or infinite."""
  if value is None or not math.isfinite(value):
    return None
  return float(value)


def metric_values(
  row: Mapping[str, Any], key: str
) -> tuple[float | None, float | None, list[float]]:
  """Returns (mean, standard deviation, single values) of a metric in a row; None if missing."""
  metric = row["metrics"].get(key) or {}
  values = [number for number in map(finite, metric.get("values") or []) if number is not None]
  mean = finite(metric.get("mean"))
  std = finite(metric.get("std")) if mean is not None else None
  return mean, std, values


def format_number(value: Any, digits: int) -> str:
  """Formats `value` with `digits` decimals; "-" for None, NaN and infinity; no negative zero."""
  number = finite(value)
  if number is None:
    return MISSING
  text = f"{number:.{digits}f}"
  return text.lstrip("-") if float(text) == 0 else text


def format_interval(interval: Sequence[float] | None, digits: int) -> str:
  """Formats [low, high] as "low to high"; "" for None."""
  return "" if interval is None else " to ".join(format_number(end, digits) for end in interval)


def format_table(report: Mapping[str, Any]) -> str:
  """Formats the main table as plain text: one line per training set, "mean +- std", aligned.

  Args:
    report: content of report.json; "columns", "rows", "seeds" and "interval_meaning" are
      read.

  Returns:
    Several lines without a final newline.
  """
  blocks = [_block(["training set"], [str(row["label"]) for row in report["rows"]], "left")]
  has_spread = False
  for column in report["columns"]:
    cells = []
    digits = column.get("digits", 3)
    for row in report["rows"]:
      mean, std, _ = metric_values(row, column["key"])
      spread = "" if std is None else f" +- {format_number(std, digits)}"
      has_spread |= bool(spread)
      cells.append(format_number(mean, digits) + spread)
    # Labels are longer than numbers; wrapping them lets a dozen columns fit a terminal.
    width = max(10, *(len(cell) for cell in cells)) if cells else 10
    label = textwrap.wrap(
      str(column["label"]), width, break_long_words=False, break_on_hyphens=False
    ) or [""]
    blocks.append(_block(label, cells, "right"))

  head_height = max(len(head) for head, _ in blocks)
  lines = []
  for i in range(head_height):
    # Heads are aligned at the bottom: short ones get blank lines above.
    parts = [
      head[i - head_height + len(head)] if i >= head_height - len(head) else " " * len(head[0])
      for head, _ in blocks
    ]
    lines.append("  ".join(parts).rstrip())
  lines.append("  ".join("-" * len(head[0]) for head, _ in blocks))
  for i in range(len(report["rows"])):
    lines.append("  ".join(cells[i] for _, cells in blocks).rstrip())
  if has_spread:
    lines.append(f"+-: standard deviation over {len(report['seeds'])} seed(s)")
    if report.get("interval_meaning"):
      lines.append(f"the page has intervals and differences: {report['interval_meaning']}")
  return "\n".join(lines)


def _block(head: Sequence[str], cells: Sequence[str], side: str) -> tuple[list[str], list[str]]:
  """Pads a column's head lines and cells to one width."""
  width = max(len(text) for text in [*head, *cells])
  pad = str.ljust if side == "left" else str.rjust
  return [pad(text, width) for text in head], [pad(text, width) for text in cells]


def jsonable(value: Any) -> Any:
  """Converts `value` to plain JSON types: arrays and tuples to lists, NaN and infinity to None.

  Raises:
    TypeError: JSON cannot hold the value's type.
  """
  if isinstance(value, Mapping):
    return {str(key): jsonable(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [jsonable(item) for item in value]
  if isinstance(value, np.ndarray):
    return jsonable(value.tolist())
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, float):
    return finite(value)
  if value is None or isinstance(value, str | bool | int):
    return value
  raise TypeError(f"a report cannot hold a {type(value).__name__}: {value!r}")


def write_json(path: str | os.PathLike[str], report: Mapping[str, Any]) -> None:
  """Writes `report` as strict JSON (sorted keys, NaN as null); whole or not at all.

  Raises:
    OutputError: the file cannot be written.
    TypeError: JSON cannot hold a value in the report.
  """
  text = json.dumps(jsonable(report), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
  files.write_bytes(path, f"{text}\n".encode())


def radii(report: Mapping[str, Any]) -> list[float]:
  """Returns the budgets of a report's rows in 8-bit levels, ascending; clean rows have none."""
  found = {row["radius_255"] for row in report["rows"] if row.get("radius_255") is not None}
  return sorted(found) or [report["radius_255"]]


def budget(report: Mapping[str, Any]) -> str:
  """Returns the budget of a report in words: "16", or "7.65 to 16" if rows have their own."""
  found = radii(report)
  return " to ".join(f"{radius:g}" for radius in dict.fromkeys((found[0], found[-1])))
