"""The picture of losses, read back by Pillow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from udp_jax.studies.tiny_ldm import figures


def test_a_panel_for_every_stage_with_a_line_that_falls(tmp_path: Path) -> None:
  runs = {}
  for name, count in (("one", 60), ("two", 0)):
    records = [{"position": 10 * i, "loss": 0.9**i} for i in range(count)]
    runs[name] = tmp_path / f"{name}.jsonl"
    runs[name].write_text("".join(json.dumps(record) + "\n" for record in records))
  figures.write_losses(tmp_path / "losses.png", runs)
  with Image.open(tmp_path / "losses.png") as picture:
    assert picture.size == (720, 260)
    pixels = np.asarray(picture.convert("RGB")).astype(int)
  # The line is matplotlib's blue, in the first panel alone.
  blue = (pixels[..., 2] - pixels[..., 0]) > 60
  rows, columns = np.nonzero(blue)
  assert len(rows) > 50 and columns.max() < 360
  left, right = columns < np.median(columns), columns > np.median(columns)
  assert rows[left].mean() < rows[right].mean() - 20
