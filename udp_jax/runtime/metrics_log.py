"""metrics.jsonl: one line of JSON per record, readable while it grows and after a kill."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from udp_jax.runtime import processes
from udp_jax.runtime.files import output_errors, write_bytes


class MetricsWriter:
  """Appends records to a file; values that are not finite become null."""

  def __init__(self, path: str | os.PathLike):
    """Opens the file for appending. Raises OutputError if it cannot be written."""
    self.path = Path(path)
    with output_errors(self.path):
      self.path.parent.mkdir(parents=True, exist_ok=True)
      self._file = self.path.open("a", encoding="utf-8")

  def write(self, position: int, **values: Any) -> None:
    """Appends one record."""
    record = {"position": position} | {name: _plain(value) for name, value in values.items()}
    with output_errors(self.path):
      self._file.write(json.dumps(record) + "\n")
      self._file.flush()

  def rewind(self, position: int) -> None:
    """Drops the records after `position`, because a resumed run writes them again."""
    kept = [r for r in read_metrics(self.path) if r["position"] <= position]
    self._file.close()
    write_bytes(self.path, "".join(json.dumps(record) + "\n" for record in kept).encode())
    with output_errors(self.path):
      self._file = self.path.open("a", encoding="utf-8")

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Reads the records of a file, skipping a last line cut short by a kill; [] without a file."""
  path = Path(path)
  if not path.exists():
    return []
  records = []
  for line in path.read_text(encoding="utf-8").splitlines():
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return records


def _plain(value: Any) -> Any:
  if isinstance(value, float | int) or hasattr(value, "item"):
    number = value.item() if hasattr(value, "item") else value
    return number if math.isfinite(number) else None
  return value


def main_writer(folder: Path) -> MetricsWriter | None:
  """Returns the writer of folder/metrics.jsonl in process 0, and None in other processes."""
  return MetricsWriter(folder / "metrics.jsonl") if processes.is_main() else None
