"""Folders of image files as sources: names, order, bad files, sizes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udp_jax.data import captions, manifest, naming, sources
from udp_jax.errors import BadDataError, ConfigError, MissingDataError


def _save(
  path: Path, seed: int = 0, size: tuple[int, int] = (8, 8), **options: object
) -> np.ndarray:
  pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path, **options)
  return pixels


def test_nested_folder_is_read_in_sorted_order_with_its_names(tmp_path: Path) -> None:
  expected = {}
  for seed, name in enumerate(["b/x/2", "a/9", "b/10", "a/1"]):
    expected[name] = _save(tmp_path / f"{name}.png", seed)
  loaded = sources.load(tmp_path)
  assert loaded.names == ("a/1", "a/9", "b/10", "b/x/2")
  for image, name in zip(loaded.images, loaded.names):
    np.testing.assert_array_equal(image, expected[name])
  assert loaded.origin["classes"] == ["a", "b"]
  np.testing.assert_array_equal(loaded.labels, [0, 0, 1, 1])
  assert loaded.origin["count"] == 4
  assert loaded.origin["sha256"] == sources.pixels_sha256(loaded.images)
  assert loaded.metadata is not None and loaded.metadata[0].file == "a/1.png"


def test_both_spellings_of_a_folder_agree(tmp_path: Path) -> None:
  _save(tmp_path / "a.png")
  assert sources.load(f"folder:{tmp_path}").origin == sources.load(str(tmp_path)).origin


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
  _save(tmp_path / "a.png")
  _save(tmp_path / "c/b.png")
  assert sources.load(tmp_path).labels is None


def test_files_that_differ_by_extension_keep_apart(tmp_path: Path) -> None:
  for seed, name in enumerate(["a.bmp", "a.png", "a.png.bmp", "a.tif"]):
    _save(tmp_path / name, seed)
  loaded = sources.load(tmp_path)
  assert loaded.names == ("a.bmp", "a", "a.png", "a.tif")


def test_other_files_are_passed_over_and_counted(tmp_path: Path) -> None:
  _save(tmp_path / "a.png")
  for name in ("notes.txt", "manifest.json", "metadata.jsonl", ".hidden.png", ".git/b.png"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("" if name == "metadata.jsonl" else "text")
  loaded = sources.load(tmp_path, strict=True)
  assert loaded.names == ("a",)
  assert loaded.origin["skipped"] == []
  assert loaded.origin["ignored"] == 1
  assert loaded.origin["ignored_kinds"] == {".txt": 1}


def test_other_files_are_named_by_kind_and_captions_are_none_of_them(
  tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
  _save(tmp_path / "a.png")
  for name in ("a.txt", "a.caption", "b.txt", "c.TXT", "film.mp4", "README"):
    (tmp_path / name).write_text("text")
  with caplog.at_level("INFO"):
    loaded = sources.load(tmp_path)
  assert loaded.origin["ignored"] == 4
  assert "ignored: 1 .mp4, 2 .txt, 1 without extension" in caplog.text


def test_what_reading_changes_is_said_once_for_all_pictures(
  tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
  for name in ("a.tif", "b.tif"):
    Image.new("CMYK", (8, 8)).save(tmp_path / name)
  frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
  frames[0].save(tmp_path / "c.gif", save_all=True, append_images=frames[1:])
  Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "d.png")
  with caplog.at_level("INFO"):
    loaded = sources.load(tmp_path)
  assert "2 pictures: CMYK without a profile converted to RGB" in caplog.text
  assert "1 picture: first of 2 frames" in caplog.text
  assert loaded.origin["notes"] == {
    "CMYK without a profile converted to RGB": 2,
    "first of 2 frames": 1,
    "16-bit reduced to 8": 1,
  }
  made = manifest.write_folder(
    tmp_path / "out",
    loaded.images,
    loaded.names,
    details=manifest.Details(metadata=loaded.metadata),
  )
  assert made is not None
  assert made["images"][2]["notes"] == ["first of 2 frames"]


def test_a_name_that_is_not_utf8_is_read_and_can_be_written(tmp_path: Path) -> None:
  raw = os.fsencode(tmp_path) + b"/" + "イ".encode("shift_jis") + b".png"
  _save(tmp_path / "a.png")
  os.rename(tmp_path / "a.png", raw)
  _save(tmp_path / "b\x1b[31m.png", 1)
  os.mkdir(os.fsencode(tmp_path) + b"/\xff")
  os.rename(tmp_path / "b\x1b[31m.png", os.fsencode(tmp_path) + b"/\xff/b\x1b[31m.png")
  loaded = sources.load(tmp_path)
  assert loaded.names == ("%83C", "%FF/b\x1b[31m")
  assert loaded.metadata is not None and naming.NOT_UTF8 in loaded.metadata[0].notes
  made = manifest.write_folder(
    tmp_path / "out",
    loaded.images,
    loaded.names,
    details=manifest.Details(metadata=loaded.metadata),
  )
  assert made is not None and (tmp_path / "out/%83C.png").is_file()


def test_a_pipe_is_reported_and_not_opened(tmp_path: Path) -> None:
  _save(tmp_path / "a.png")
  os.mkfifo(tmp_path / "b.png")
  os.mkfifo(tmp_path / "c")
  loaded = sources.load(tmp_path)
  assert loaded.names == ("a",)
  assert [entry[0] for entry in loaded.origin["skipped"]] == ["b.png", "c"]


def test_captions_go_along_with_the_pictures_that_are_chosen(tmp_path: Path) -> None:
  for seed, name in enumerate(["a.jpg", "a.png", "b.png"]):
    _save(tmp_path / name, seed)
  (tmp_path / "metadata.csv").write_text("file_name,text,artist\na.jpg,one,x\nb.png,two,y\n")
  (tmp_path / "a.txt").write_text("both")
  loaded = sources.load(tmp_path)
  written = manifest.write_folder(
    tmp_path / "out",
    loaded.images,
    loaded.names,
    details=manifest.Details(metadata=loaded.metadata, beside=loaded.beside),
  )
  assert written is not None
  assert [entry["file"] for entry in written["captions"]] == ["a.jpg.txt", "a.txt", "metadata.csv"]
  assert captions.read_captions(tmp_path / "out", ["a.jpg.png", "a.png", "b.png"]) == {
    "a.jpg.png": "one",
    "a.png": "both",
    "b.png": "two",
  }
  manifest.write_folder(tmp_path / "out", loaded.images, loaded.names, overwrite=True)
  assert not (tmp_path / "out/metadata.csv").exists() and not (tmp_path / "out/a.txt").exists()


def test_image_without_an_image_extension_is_found(tmp_path: Path) -> None:
  _save(tmp_path / "scan.dat", format="PNG")
  _save(tmp_path / "photo", 1, format="WEBP", lossless=True)
  assert sources.load(tmp_path).names == ("photo", "scan")


def _with_bad_files(tmp_path: Path) -> None:
  for seed in range(3):
    _save(tmp_path / f"good{seed}.png", seed)
  (tmp_path / "empty.png").write_bytes(b"")
  content = (tmp_path / "good0.png").read_bytes()
  (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
  (tmp_path / "phone.heic").write_bytes(b"anything")


def test_bad_files_are_skipped_and_counted(
  tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
  _with_bad_files(tmp_path)
  with caplog.at_level("WARNING"):
    loaded = sources.load(tmp_path)
  assert "skipped 3 unusable files" in caplog.text
  assert loaded.names == ("good0", "good1", "good2")
  skipped = dict(loaded.origin["skipped"])
  assert set(skipped) == {"empty.png", "cut.jpg", "phone.heic"}
  assert "empty" in skipped["empty.png"]
  assert "not supported" in skipped["phone.heic"]


def test_strict_makes_a_bad_file_fatal(tmp_path: Path) -> None:
  _with_bad_files(tmp_path)
  (tmp_path / "phone.heic").unlink()
  with pytest.raises(BadDataError, match="cut.jpg"):
    sources.load(tmp_path, strict=True)


def test_limit_reaches_past_bad_files(tmp_path: Path) -> None:
  _with_bad_files(tmp_path)
  for seed in range(20):
    assert len(sources.load(tmp_path, limit=3, seed=seed).images) == 3


def test_only_bad_files(tmp_path: Path) -> None:
  (tmp_path / "a.png").write_bytes(b"")
  with pytest.raises(BadDataError, match="none of 1 image files is usable.*a.png"):
    sources.load(tmp_path)


def test_empty_missing_and_wrong_places(tmp_path: Path) -> None:
  with pytest.raises(MissingDataError, match="no images in it"):
    sources.load(tmp_path)
  (tmp_path / "a.txt").write_text("text")
  with pytest.raises(MissingDataError, match="1 other files"):
    sources.load(tmp_path)
  with pytest.raises(MissingDataError, match="no such folder"):
    sources.load(tmp_path / "nothing")
  with pytest.raises(MissingDataError, match="is a file"):
    sources.load(tmp_path / "a.txt")
  with pytest.raises(MissingDataError, match="no such folder"):
    sources.load(f"folder:{tmp_path}/nothing")


@pytest.mark.parametrize("spec", ["bultin", "cifar100:x", "tdfs:mnist"])
def test_unknown_source_lists_the_known_ones(spec: str) -> None:
  with pytest.raises(ConfigError, match=f"unknown source '{spec}'.*builtin.*npz.*cifar10"):
    sources.load(spec)


def test_different_sizes_need_an_image_size(tmp_path: Path) -> None:
  _save(tmp_path / "a.png", size=(8, 12))
  _save(tmp_path / "b.png", size=(40, 20))
  _save(tmp_path / "c.png", size=(1, 1))
  with pytest.raises(ConfigError, match=r"a.png is 12x8, b.png is 20x40.*image_size"):
    sources.load(tmp_path)
  loaded = sources.load(tmp_path, image_size=10)
  assert loaded.images.shape == (3, 10, 10, 3)
  assert loaded.metadata is not None
  assert loaded.metadata[1].notes == ("resized from 20x40",)


def test_unlistable_subfolder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  _save(tmp_path / "a.png")
  _save(tmp_path / "locked/b.png")
  listing = os.scandir

  def refuse(path: object) -> object:
    if str(path).endswith("locked"):
      raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return listing(path)

  monkeypatch.setattr(os, "scandir", refuse)
  loaded = sources.load(tmp_path)
  assert loaded.names == ("a",)
  assert loaded.origin["skipped"][0][0] == "locked"


def test_linked_folder_is_followed_once(tmp_path: Path) -> None:
  _save(tmp_path / "real/a.png")
  (tmp_path / "set").mkdir()
  (tmp_path / "set/link").symlink_to(tmp_path / "real")
  (tmp_path / "set/loop").symlink_to(tmp_path / "set")
  assert sources.load(tmp_path / "set").names == ("link/a",)


def test_limit_is_a_deterministic_subset_in_order(tmp_path: Path) -> None:
  for seed in range(12):
    _save(tmp_path / f"{seed:02d}.png", seed)
  first = sources.load(tmp_path, limit=5, seed=1)
  again = sources.load(tmp_path, limit=5, seed=1)
  other = sources.load(tmp_path, limit=5, seed=2)
  assert first.names == again.names == tuple(sorted(first.names))
  assert first.origin["sha256"] == again.origin["sha256"]
  assert first.names != other.names
  with pytest.raises(ConfigError, match="limit"):
    sources.load(tmp_path, limit=0)


def test_classes_are_first_level_folders(tmp_path: Path) -> None:
  for seed, name in enumerate(["cat/1", "cat/2", "dog/1"]):
    _save(tmp_path / f"{name}.png", seed)
  assert sources.load(tmp_path, classes=("cat",)).names == ("cat/1", "cat/2")
  with pytest.raises(ConfigError, match="no class cow; it has cat, dog"):
    sources.load(tmp_path, classes=("cow",))


def test_alpha_and_profile_travel_with_the_images(tmp_path: Path) -> None:
  _save(tmp_path / "a.png", icc_profile=b"\0" * 16 + b"RGB " + b"\0" * 100)
  Image.new("RGBA", (8, 8), (1, 2, 3, 4)).save(tmp_path / "b.png")
  loaded = sources.load(tmp_path)
  assert loaded.alphas is not None and loaded.alphas[0] is None
  np.testing.assert_array_equal(loaded.alphas[1], np.full((8, 8), 4))
  assert loaded.metadata is not None
  assert loaded.metadata[0].icc_profile is not None
  assert loaded.metadata[1].icc_profile is None
