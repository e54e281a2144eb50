"""The pictures of a matrix's page: the same ones everywhere, and none where nothing was made."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from udp_jax.data import manifest
from udp_jax.studies.matrix import mosaics
from udp_jax.studies.matrix.plan import Cell

REPORT = {
  "rows": [{"name": "clean"}, {"name": "eudp"}],
  "purifiers": [{"name": "none"}, {"name": "jpeg"}],
  "threats": [{"name": "img2img", "kind": "edits"}, {"name": "lora", "kind": "samples"}],
  "seeds": [7, 8],
}


def _write(folder: Path, seed: int, count: int = 9) -> np.ndarray:
  images = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), np.uint8)
  manifest.write_folder(folder, images, [f"{i:02d}" for i in range(count)])
  return images


def test_four_pictures_spread_over_the_set(tmp_path: Path) -> None:
  clean = _write(tmp_path / "clean", 0)
  protected = _write(tmp_path / "protected" / "eudp", 1)
  purified = _write(tmp_path / "purified" / "eudp" / "jpeg" / "pictures", 2)
  cell = Cell("eudp", "jpeg", "img2img", 7)
  edits = _write(cell.folder(tmp_path) / "edits", 3)
  _write(cell._replace(seed=8).folder(tmp_path) / "edits", 4)
  samples = _write(cell._replace(threat="lora").folder(tmp_path) / "samples", 5, count=3)
  found = mosaics.pictures(REPORT, tmp_path)
  spread = [0, 2, 5, 8]
  np.testing.assert_array_equal(found["clean"]["none"]["pictures"], clean[spread])
  np.testing.assert_array_equal(found["eudp"]["none"]["pictures"], protected[spread])
  shown = found["eudp"]["jpeg"]
  np.testing.assert_array_equal(shown["pictures"], purified[spread])
  np.testing.assert_array_equal(shown["img2img"], edits[spread])
  # Samples belong to no picture: the first ones.
  np.testing.assert_array_equal(shown["lora"], samples)
  assert found["clean"]["jpeg"] == {}


def test_a_folder_that_is_not_finished_is_left_out(tmp_path: Path) -> None:
  _write(tmp_path / "clean", 0)
  (tmp_path / "clean" / manifest.MANIFEST).unlink()
  assert mosaics.pictures(REPORT, tmp_path)["clean"]["none"] == {}
