"""Pictures of any size in a folder, measured and left on the disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udp_jax.data import picture_files
from udp_jax.errors import MissingDataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
  generator = np.random.default_rng(0)
  for name, shape in {
    "b/wide.png": (5, 9, 3),
    "a.png": (7, 4, 3),
    "b/tall.jpg": (20, 8, 3),
  }.items():
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(generator.integers(0, 256, shape, np.uint8)).save(path)
  return tmp_path / "in"


def test_every_picture_is_measured(folder: Path) -> None:
  found = picture_files.list_pictures(folder)
  sizes = {file.relative: (file.height, file.width) for file in found.files}
  assert sizes == {"a.png": (7, 4), "b/tall.jpg": (20, 8), "b/wide.png": (5, 9)}
  for file in found.files:
    assert file.path == folder / file.relative
    assert file.file_sha256 == hashlib.sha256(file.path.read_bytes()).hexdigest()
  assert found.folder == folder and found.origin["count"] == 3


def test_a_picture_on_its_side_is_measured_upright(folder: Path) -> None:
  exif = Image.Exif()
  exif[0x0112] = 6
  with Image.open(folder / "b" / "tall.jpg") as picture:
    picture.save(folder / "b" / "tall.jpg", exif=exif)
  (file,) = [f for f in picture_files.list_pictures(folder).files if f.relative == "b/tall.jpg"]
  assert (file.height, file.width) == (8, 20)


def test_the_set_is_its_pixels_and_names(folder: Path) -> None:
  before = picture_files.list_pictures(folder).origin["sha256"]
  # Written again without loss: the same picture under the same name.
  with Image.open(folder / "a.png") as picture:
    pixels = np.asarray(picture)
  Image.fromarray(pixels).save(folder / "a.png", optimize=True, pnginfo=None)
  assert picture_files.list_pictures(folder).origin["sha256"] == before
  Image.fromarray(255 - pixels).save(folder / "a.png")
  assert picture_files.list_pictures(folder).origin["sha256"] != before
  Image.fromarray(pixels).save(folder / "a.png")
  (folder / "a.png").rename(folder / "c.png")
  assert picture_files.list_pictures(folder).origin["sha256"] != before


def test_a_limit_takes_some_and_nothing_is_missing_data(folder: Path, tmp_path: Path) -> None:
  assert len(picture_files.list_pictures(folder, limit=2).files) == 2
  with pytest.raises(MissingDataError):
    picture_files.list_pictures(tmp_path / "none")
