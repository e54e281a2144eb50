"""Grids of pictures: a column a purifier, a line a threat, read back by Pillow."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from udp_jax.report import mosaics, plots

REPORT = {
  "purifiers": [{"name": "none", "label": "none"}, {"name": "jpeg", "label": "JPEG"}],
  "threats": [{"name": "img2img"}],
}
SERIES = {"eudp": plots.Series("eudp", "EUDP", False, 1, ())}


def _pixels(uri: str) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_a_row_is_a_grid_with_gaps_where_nothing_was_made() -> None:
  generator = np.random.default_rng(0)
  some, edits = generator.integers(0, 256, (2, 2, 6, 5, 3), np.uint8)
  shown = {"eudp": {"none": {"pictures": some, "img2img": edits}, "jpeg": {"pictures": some[:0]}}}
  (group,) = mosaics.gallery(REPORT, shown, SERIES)
  assert group["series"] is SERIES["eudp"]
  first, second = group["columns"]
  assert [column["title"] for column in (first, second)] == ["as it is", "JPEG"]
  assert [tile["line"] for tile in first["tiles"]] == ["pictures", "img2img"]
  for tile, images in zip(first["tiles"], (some, edits)):
    found = _pixels(tile["tile"]["uri"])
    assert (tile["tile"]["width"], tile["tile"]["height"]) == found.shape[1::-1] == (11, 6)
    np.testing.assert_array_equal(found[:, :5, :3], images[0])
    np.testing.assert_array_equal(found[:, 6:, :3], images[1])
  assert [tile["tile"] for tile in second["tiles"]] == [None, None]


def test_large_pictures_are_made_small() -> None:
  ramp = np.broadcast_to(np.linspace(0, 255, 512)[None, None, :, None], (1, 64, 512, 3))
  shown = {"eudp": {"none": {"pictures": ramp.astype(np.uint8)}}}
  (group,) = mosaics.gallery(REPORT, shown, SERIES)
  found = _pixels(group["columns"][0]["tiles"][0]["tile"]["uri"])[..., :3]
  assert found.shape == (16, 128, 3)
  expected = np.asarray(Image.fromarray(ramp[0].astype(np.uint8)).reduce(4)).astype(int)
  assert np.abs(found.astype(int) - expected).max() <= 2
