"""cell.json: what was measured in one cell, or why it could not be.

A cell that failed is made again by the next run. Everything that a report says comes from these
files as they were read back, so that it does not matter in how many runs they were written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from udp_jax.data import files
from udp_jax.matrix.plan import Cell

FILE = "cell.json"
ERROR = "error"
# Longer messages (of a compiler, say) are cut.
_LONGEST = 500


def read(cell: Cell, workdir: Path) -> dict[str, Any] | None:
  """The record of a cell, None where there is none yet.

  Raises:
    BadDataError: the file is damaged.
  """
  path = cell.folder(workdir) / FILE
  return files.read_json(path) if path.exists() else None


def is_done(cell: Cell, workdir: Path) -> bool:
  """Whether a cell was measured; one that failed was not."""
  record = read(cell, workdir)
  return record is not None and ERROR not in record


def write(
  cell: Cell,
  workdir: Path,
  values: Mapping[str, np.ndarray],
  scalars: Mapping[str, float] | None = None,
) -> None:
  """Records what was measured.

  Args:
    cell: which one.
    workdir: of the matrix.
    values: by metric, one number a picture or sample; NaN where there is none.
    scalars: by metric, numbers of a whole set.
  """
  record = {
    **_place(cell),
    "values": {name: _finite(array) for name, array in values.items()},
    "scalars": {name: _finite([value])[0] for name, value in (scalars or {}).items()},
  }
  files.write_json(cell.folder(workdir) / FILE, record)


def write_failure(cell: Cell, workdir: Path, error: str) -> None:
  """Records why a cell has no numbers."""
  files.write_json(cell.folder(workdir) / FILE, {**_place(cell), ERROR: error})


def explain(error: BaseException) -> str:
  """An exception on one line."""
  text = " ".join(f"{type(error).__name__}: {error}".split())
  return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def values_of(record: Mapping[str, Any], metric: str) -> np.ndarray | None:
  """(pictures,) of one metric, NaN where there is no number; None where it was not measured."""
  found = record.get("values", {}).get(metric)
  return None if found is None else np.array([np.nan if v is None else v for v in found], float)


def _place(cell: Cell) -> dict[str, Any]:
  return {name: value for name, value in cell._asdict().items() if value is not None}


def _finite(array: Any) -> list[float | None]:
  return [float(value) if np.isfinite(value) else None for value in array]
