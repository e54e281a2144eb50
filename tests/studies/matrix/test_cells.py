"""cell.json: what was measured, and what could not be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from udp_jax.errors import BadDataError
from udp_jax.studies.matrix import cells
from udp_jax.studies.matrix.plan import Cell

CELL = Cell("eudp", "jpeg", "lora", 1)


def test_numbers_come_back_and_what_is_no_number_is_none(tmp_path: Path) -> None:
  assert cells.read(CELL, tmp_path) is None and not cells.is_done(CELL, tmp_path)
  values = {"loss": np.array([0.5, np.nan, np.inf], np.float32)}
  cells.write(CELL, tmp_path, values, {"fd": np.float64(2.5), "mmd": -np.inf})
  stored = json.loads((CELL.folder(tmp_path) / "cell.json").read_text())
  assert stored == {
    "row": "eudp",
    "purifier": "jpeg",
    "threat": "lora",
    "seed": 1,
    "values": {"loss": [0.5, None, None]},
    "scalars": {"fd": 2.5, "mmd": None},
  }
  assert cells.is_done(CELL, tmp_path)
  record = cells.read(CELL, tmp_path)
  assert record == stored
  np.testing.assert_array_equal(cells.values_of(record, "loss"), [0.5, np.nan, np.nan])
  assert cells.values_of(record, "psnr") is None
  # The cell of the pictures is another one, and has no threat to name.
  assert cells.read(CELL.pictures, tmp_path) is None
  cells.write(CELL.pictures, tmp_path, {})
  assert cells.read(CELL.pictures, tmp_path).keys() == {"row", "purifier", "values", "scalars"}


def test_a_cell_that_failed_is_not_done(tmp_path: Path) -> None:
  cells.write_failure(CELL, tmp_path, "ValueError: no luck")
  assert not cells.is_done(CELL, tmp_path)
  record = cells.read(CELL, tmp_path)
  assert record[cells.ERROR] == "ValueError: no luck"
  assert cells.values_of(record, "loss") is None
  cells.write(CELL, tmp_path, {"loss": np.zeros(1)})
  assert cells.is_done(CELL, tmp_path)


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
  CELL.folder(tmp_path).mkdir(parents=True)
  (CELL.folder(tmp_path) / cells.FILE).write_text("{")
  with pytest.raises(BadDataError, match="cell.json"):
    cells.read(CELL, tmp_path)


def test_errors_are_one_line_of_a_length_that_can_be_read() -> None:
  assert cells.explain(KeyError("a")) == "KeyError: 'a'"
  assert cells.explain(ValueError("one\n   two")) == "ValueError: one two"
  long = cells.explain(ValueError("x" * 2000))
  assert len(long) == 500 and long.startswith("ValueError: xxx") and long.endswith("x…")
