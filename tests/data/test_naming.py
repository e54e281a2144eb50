"""Names of pictures: which file keeps which, in every file system."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udp_jax.data import images, naming, picture_files, picture_folder
from udp_jax.data.naming import unique_names
from udp_jax.data.verify import verify

CAFE = "caf\u00e9"


@pytest.mark.parametrize(
  ("relatives", "names"),
  [
    (["c.jpg", "c.png"], ["c.jpg", "c"]),
    (["c.jpg", "c.tif"], ["c", "c.tif"]),
    (["a.jpg", "a.png/b.jpg"], ["a.jpg", "a.png/b"]),
    (["a.bmp", "a.png", "a.png.bmp"], ["a.bmp", "a", "a.png"]),
    (["A.png", "a.png"], ["A", "a.png"]),
    (["A.PNG", "a.png"], ["A.PNG", "a"]),
    (["x/A.jpg", "x/a.jpg", "X/a.gif"], ["x/A", "x/a.jpg", "X/a.gif"]),
    (
      [f"{unicodedata.normalize('NFD', CAFE)}.png", f"{CAFE}.jpg"],
      [unicodedata.normalize("NFD", CAFE), f"{CAFE}.jpg"],
    ),
    (["a.b", "a.b.c", "a.b.c.d", "a"], ["a", "a.b", "a.b.c", "a-2"]),
    (["straße.png", "STRASSE.jpg"], ["straße", "STRASSE.jpg"]),
  ],
)
def test_png_files_keep_their_names_and_nobody_takes_another_ones(
  relatives: list[str], names: list[str]
) -> None:
  assert unique_names(relatives) == names
  saved = sorted(f"{name}.png" for name in names)
  again = unique_names(saved)
  # What is written under these names has them when it is read again.
  assert [f"{name}.png" for name in again] == saved


def test_very_long_names_are_cut_and_stay_apart() -> None:
  relatives = [f"{'ä' * 124}{i}.jpg" for i in range(3)] + ["x" * 300 + ".png"]
  names = unique_names(relatives)
  assert len(set(names)) == 4 and all(len(f"{name}.json".encode()) < 255 for name in names)
  assert unique_names([f"{name}.png" for name in names]) == names


def test_readable_and_printable_texts() -> None:
  raw = b"\x83C/ok \xf0\x9f\x8e\xa8.png".decode("utf-8", "surrogateescape")
  assert naming.readable(raw) == "%83C/ok 🎨.png"
  assert naming.readable("plain") == "plain"
  json.loads(json.dumps(naming.readable(raw))).encode()
  assert naming.printable("a\nb\x1b[31m\u202e🎨 é\udc83") == ("a\\nb\\x1b[31m\\u202e🎨 é\\udc83")


def test_verify_finds_the_counterparts_of_all_of_them(tmp_path: Path) -> None:
  source, output = tmp_path / "in", tmp_path / "out"
  (source / "a.png").mkdir(parents=True)
  names = ["c.jpg", "c.png", "a.jpg", "a.png/b.jpg", f"{unicodedata.normalize('NFD', CAFE)}.png"]
  for seed, name in enumerate(names):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(source / name)
  found = picture_files.list_pictures(source)
  picture_folder.claim(output, [file.name for file in found.files])
  for file in found.files:
    picture = images.read_large(file.path)
    picture_folder.write(output, tmp_path / "records", file.name, picture)
  assert sorted(p.relative_to(output).as_posix() for p in output.rglob("*.png") if p.is_file()) == [
    "a.jpg.png",
    "a.png/b.png",
    "c.jpg.png",
    "c.png",
    f"{unicodedata.normalize('NFD', CAFE)}.png",
  ]
  np.testing.assert_array_equal(
    images.read_large(output / "c.png").pixels, images.read_large(source / "c.png").pixels
  )
  # As after a copy to a file system that stores accents in another way.
  (output / f"{unicodedata.normalize('NFD', CAFE)}.png").rename(output / f"{CAFE}.png")
  (output / ".incomplete").unlink()
  report = verify(source, output, 0)
  assert report.ok and report.checked == 5


def test_folders_do_not_stand_where_runs_write_files() -> None:
  relatives = [
    "Manifest.JSON-2/z.png",
    "a/metadata.csv/x.png",
    "manifest.json/deep/x.jpg",
    "manifest.json/x.png",
    "metadata.jsonl/manifest.json/x.png",
    "other.json/x.png",
  ]
  names = unique_names(sorted(relatives))
  assert names == [
    "Manifest.JSON-2/z",
    "a/metadata.csv-2/x",
    "manifest.json-3/deep/x",
    "manifest.json-3/x",
    "metadata.jsonl-2/manifest.json-2/x",
    "other.json/x",
  ]
  written = sorted(f"{name}.png" for name in names)
  assert unique_names(written) == [name.removesuffix(".png") for name in written]
