"""Where pictures came from, and whether they are still there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.made import save_picture
from udp_jax.data import image_set, images, originals, sources


def test_hashes_are_of_bytes_and_of_what_is_seen(tmp_path: Path) -> None:
  path = save_picture(tmp_path / "a.png")
  assert originals.file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
  again = tmp_path / "b.bmp"
  Image.open(path).save(again)
  first, second = (originals.picture_sha256(images.read_image(p)) for p in (path, again))
  assert first == second and originals.file_sha256(path) != originals.file_sha256(again)
  pixels = np.array(Image.open(path))
  pixels[0, 0, 0] ^= 1
  Image.fromarray(pixels).save(again)
  assert originals.picture_sha256(images.read_image(again)) != first
  # Transparency is seen too.
  half = Image.open(path).convert("RGBA")
  half.putalpha(128)
  half.save(tmp_path / "c.png")
  assert originals.picture_sha256(images.read_image(tmp_path / "c.png")) != first


def test_each_picture_names_its_file(tmp_path: Path) -> None:
  for number, name in enumerate(("b/a.png", "c.png")):
    save_picture(tmp_path / "in" / name, number)
  found = sources.load(tmp_path / "in")
  expected = {
    f"{name}.png": {
      "folder": str(tmp_path / "in"),
      "file": f"{name}.png",
      "sha256": hashlib.sha256((tmp_path / "in" / f"{name}.png").read_bytes()).hexdigest(),
    }
    for name in ("b/a", "c")
  }
  assert originals.sources_of(found) == expected
  assert originals.source_folder(found.origin) == str(tmp_path / "in")
  # A file that has gone since is nobody's source.
  (tmp_path / "in" / "c.png").unlink()
  assert originals.sources_of(found).keys() == {"b/a.png"}


@pytest.mark.parametrize("source", ["npz a.npz", "builtin", "a test"])
def test_other_sources_have_no_files(source: str) -> None:
  made = image_set.ImageSet(np.zeros((2, 4, 4, 3), np.uint8), ["a", "b"])
  found = image_set.finish(made, source)
  assert originals.sources_of(found) == {} and originals.source_folder(found.origin) is None


@pytest.mark.parametrize(
  ("content", "ours"),
  [
    ({"file": "a.png", "sha256": "0"}, True),
    ({"file": "a.png"}, False),
    ({"file": 3, "sha256": "0"}, False),
    ({"images": []}, False),
  ],
)
def test_records_of_pictures(content: dict, ours: bool) -> None:
  assert originals.is_record(content) == ours
