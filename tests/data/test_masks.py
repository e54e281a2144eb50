"""Masks: which file belongs to which picture, what counts as white, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udp_jax.data import masks, picture_files
from udp_jax.errors import BadDataError, MissingDataError


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[picture_files.PictureFile, ...]:
  folder = tmp_path / "pictures"
  (folder / "sub").mkdir(parents=True)
  Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder / "one.jpg")
  Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder / "sub" / "two.png")
  return picture_files.list_pictures(folder).files


def _levels() -> np.ndarray:
  levels = np.zeros((4, 6), np.uint8)
  levels[1], levels[2], levels[3] = 127, 128, 255
  return levels


def test_half_white_is_white_and_transparent_is_not(pictures, tmp_path: Path) -> None:
  Image.fromarray(_levels()).save(tmp_path / "mask.png")
  found = masks.find(tmp_path / "mask.png", pictures)
  assert set(found) == {"one", "sub/two"}
  white = masks.read(found["one"], pictures[0])
  np.testing.assert_array_equal(white, np.repeat([[False], [False], [True], [True]], 6, 1))
  alpha = np.full((4, 6), 255, np.uint8)
  alpha[3, :2] = 0
  both = Image.merge("LA", [Image.fromarray(_levels()), Image.fromarray(alpha)])
  both.save(tmp_path / "mask.png")
  white[3, :2] = False
  np.testing.assert_array_equal(masks.read(tmp_path / "mask.png", pictures[0]), white)


def test_a_folder_of_masks_goes_by_names(pictures, tmp_path: Path) -> None:
  (tmp_path / "masks" / "sub").mkdir(parents=True)
  Image.fromarray(_levels()).save(tmp_path / "masks" / "one.png")
  with pytest.raises(MissingDataError, match=r"no mask for sub/two\.png; give it an all-white one"):
    masks.find(tmp_path / "masks", pictures)
  Image.fromarray(255 - _levels()).save(tmp_path / "masks" / "sub" / "two.bmp")
  found = masks.find(tmp_path / "masks", pictures)
  assert found["sub/two"].name == "two.bmp"
  before = masks.sha256(found)
  Image.fromarray(_levels()).save(tmp_path / "masks" / "sub" / "two.bmp")
  assert masks.sha256(found) != before


def test_masks_that_do_not_fit(pictures, tmp_path: Path) -> None:
  Image.fromarray(np.zeros((6, 4), np.uint8)).save(tmp_path / "mask.png")
  with pytest.raises(BadDataError, match=r"the mask is 4x6, one\.jpg is 6x4; save it in the"):
    masks.find(tmp_path / "mask.png", pictures)
  (tmp_path / "mask.png").write_text("no picture")
  with pytest.raises(BadDataError, match="not a PNG"):
    masks.find(tmp_path / "mask.png", pictures)
  with pytest.raises(MissingDataError, match="no such file or folder"):
    masks.find(tmp_path / "nothing", pictures)


def test_a_mask_that_allows_nothing_says_what_a_mask_is(pictures, tmp_path: Path) -> None:
  red = np.zeros((4, 6, 4), np.uint8)
  red[1:3] = 255, 0, 0, 255
  Image.fromarray(red).save(tmp_path / "mask.png")
  with pytest.raises(
    BadDataError, match=r"lets no pixel of one\.jpg change.*white and opaque"
  ) as e:
    masks.find(tmp_path / "mask.png", pictures)
  assert "coloured: paint it white" in str(e.value)
  Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "mask.png")
  with pytest.raises(BadDataError, match=r"lets no pixel of one\.jpg change") as e:
    masks.find(tmp_path / "mask.png", pictures)
  assert "coloured" not in str(e.value)
