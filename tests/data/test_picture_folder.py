"""Folders of pictures of any sizes: what is listed, written, recorded and made again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udp_jax.data import picture_files, picture_folder
from udp_jax.data.images import Picture
from udp_jax.errors import BadDataError, MissingDataError, OutputError


def _pixels(seed: int, height: int, width: int) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _save(path: Path, *where: int, **options) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(_pixels(*where)).save(path, **options)


def test_pictures_of_different_sizes_are_listed_upright(tmp_path: Path) -> None:
  exif = Image.Exif()
  exif[0x0112] = 6
  _save(tmp_path / "b.png", 0, 1, 1)
  _save(tmp_path / "a" / "x.jpg", 1, 5, 9, exif=exif)
  (tmp_path / "a" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
  found = picture_files.list_pictures(tmp_path)
  assert [(f.name, f.relative, f.height, f.width) for f in found.files] == [
    ("a/x", "a/x.jpg", 9, 5),
    ("b", "b.png", 1, 1),
  ]
  assert found.origin["count"] == 2
  assert [file for file, _ in found.origin["skipped"]] == ["a/broken.png"]
  with pytest.raises(BadDataError, match=r"broken\.png"):
    picture_files.list_pictures(tmp_path, strict=True)
  (tmp_path / "empty").mkdir()
  with pytest.raises(MissingDataError, match="no images in it"):
    picture_files.list_pictures(tmp_path / "empty")


def test_identity_is_that_of_pixels_transparency_and_names(tmp_path: Path) -> None:
  def identity(name: str, alpha: int | None = None, seed: int = 0) -> str:
    folder = tmp_path / f"{name}{alpha}{seed}"
    folder.mkdir(exist_ok=True)
    pixels = _pixels(seed, 4, 6)
    if alpha is not None:
      pixels = np.concatenate([pixels, np.full((4, 6, 1), alpha, np.uint8)], -1)
    Image.fromarray(pixels).save(folder / f"{name}.png")
    return picture_files.list_pictures(folder).origin["sha256"]

  assert identity("a") == identity("a")
  assert len({identity("a"), identity("b"), identity("a", 0), identity("a", 9)}) == 4
  assert identity("a", seed=1) != identity("a")


def test_limit_is_that_of_other_sources(tmp_path: Path) -> None:
  for i in range(6):
    _save(tmp_path / f"{i}.png", i, i + 1, 3)
  few = picture_files.list_pictures(tmp_path, limit=3, seed=1)
  assert len(few.files) == 3 and few == picture_files.list_pictures(tmp_path, limit=3, seed=1)
  assert [f.name for f in few.files] == sorted(f.name for f in few.files)


def test_written_files_are_measured_and_recorded(tmp_path: Path) -> None:
  folder, records = tmp_path / "out", tmp_path / "records"
  clean = _pixels(0, 300, 7) // 2
  changed = clean.copy()
  changed[5, 3, 1] += 9
  changed[299, 6, 2] += 4
  alpha = _pixels(1, 300, 7)[..., 0]
  picture_folder.claim(folder, ["a/x", "y"])
  bound = picture_folder.Bound(9)
  first = picture_folder.write(
    folder, records, "a/x", Picture(changed, alpha), clean=clean, bound=bound
  )
  assert first | {"sha256": ""} == {
    "file": "a/x.png",
    "sha256": "",
    "width": 7,
    "height": 300,
    "max_abs_255": 9,
    "psnr": pytest.approx(10 * np.log10(255**2 * 6300 / 97), abs=1e-4),
  }
  second = picture_folder.write(folder, records, "y", Picture(clean), clean=clean)
  assert second["psnr"] is None and second["max_abs_255"] == 0
  found = picture_folder.finished(folder, records, ["a/x", "y", "z"])
  assert found == {"a/x": first, "y": second}
  (folder / "y.png").write_bytes(b"?")
  assert list(picture_folder.finished(folder, records, ["a/x", "y"])) == ["a/x"]
  made = picture_folder.finish(folder, [first, second], {"method": "a test"})
  assert made["worst"] == {"file": "a/x.png", "max_abs_255": 9}
  assert json.loads((folder / "manifest.json").read_text()) == made
  assert not (folder / ".incomplete").exists()


def test_file_over_the_budget_is_a_bug(tmp_path: Path) -> None:
  clean = np.zeros((2, 2, 3), np.uint8)
  with pytest.raises(RuntimeError, match="10 levels from its clean image, over the budget of 9"):
    picture_folder.write(
      *(tmp_path, tmp_path / "records", "x", Picture(clean + 10)),
      clean=clean,
      bound=picture_folder.Bound(9),
    )
  assert picture_folder.finished(tmp_path, tmp_path / "records", ["x"]) == {}


def test_claim_keeps_what_is_finished_and_nobody_elses(tmp_path: Path) -> None:
  folder, records = tmp_path / "out", tmp_path / "records"
  picture_folder.claim(folder, ["a", "b", "c"])
  for name in "abc":
    picture_folder.write(folder, records, name, Picture(_pixels(0, 3, 3)))
  assert picture_folder.claim(folder, ["a", "d"], keep=["a"]) == []
  assert sorted(path.name for path in folder.iterdir()) == [".incomplete", "a.png"]
  (folder / "mine.txt").touch()
  with pytest.raises(OutputError, match=r"not ours \(mine\.txt"):
    picture_folder.claim(folder, ["a", "d"], keep=["a"])
  with pytest.raises(OutputError, match="both a file and a folder"):
    picture_folder.claim(tmp_path / "other", ["a.png/b", "a"])
  created = picture_folder.claim(tmp_path / "new" / "out", ["a"])
  picture_folder.withdraw(tmp_path / "new" / "out", created)
  assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
  "wrong", [{"psnr": float("nan")}, {"file": "../x.png"}, {"max_abs_255": "9"}, {"sha256": None}]
)
def test_damaged_records_count_as_none(wrong: dict, tmp_path: Path) -> None:
  clean = np.zeros((2, 2, 3), np.uint8)
  records = tmp_path / "records"
  entry = picture_folder.write(tmp_path, records, "x", Picture(clean + 9), clean=clean)
  assert picture_folder.finished(tmp_path, records, ["x"]) == {"x": entry}
  (records / "x.json").write_text(json.dumps(entry | wrong))
  assert picture_folder.finished(tmp_path, records, ["x"]) == {}
