"""cell.json: the measurements of one cell, or why they failed.

The next run makes a failed cell again. A report uses only numbers that were read back from these
files, so it does not depend on how many runs wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from udp_jax.runtime import files
from udp_jax.studies.matrix.plan import Cell

FILE = "cell.json"
ERROR = "error"
# Longer messages (of a compiler, for example) are cut.
_LONGEST = 500


def read(cell: Cell, workdir: Path) -> dict[str, Any] | None:
  """Reads the record of a cell; None if it does not exist yet.

  Raises:
    BadDataError: the file is damaged.
  """
  path = cell.folder(workdir) / FILE
  return files.read_json(path) if path.exists() else None


def is_done(cell: Cell, workdir: Path) -> bool:
  """Whether a cell was measured; a failed cell was not."""
  record = read(cell, workdir)
  return record is not None and ERROR not in record


def write(
  cell: Cell,
  workdir: Path,
  values: Mapping[str, np.ndarray],
  scalars: Mapping[str, float] | None = None,
) -> None:
  """Records the measurements of a cell.

  Args:
    cell: the cell.
    workdir: folder of the matrix.
    values: metric -> (N,), one number for each picture or sample; NaN where there is none.
    scalars: metric -> one number for the whole set.
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
  """Formats an exception as one line."""
  text = " ".join(f"{type(error).__name__}: {error}".split())
  return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def values_of(record: Mapping[str, Any], metric: str) -> np.ndarray | None:
  """(pictures,) of one metric, NaN where there is no number; None if it was not measured."""
  found = record.get("values", {}).get(metric)
  return None if found is None else np.array([np.nan if v is None else v for v in found], float)


def _place(cell: Cell) -> dict[str, Any]:
  return {name: value for name, value in cell._asdict().items() if value is not None}


def _finite(array: Any) -> list[float | None]:
  return [float(value) if np.isfinite(value) else None for value in array]
