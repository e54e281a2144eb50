"""Budgets checked from files that anyone may have written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udp_jax.data.verify import verify
from udp_jax.errors import ConfigError, MissingDataError


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
  """Clean BMP files and protected PNG files at most four levels away."""
  generator = np.random.default_rng(0)
  for name in ("a", "b", "deep/c"):
    clean = generator.integers(10, 246, (6, 5, 3), dtype=np.uint8)
    protected = clean + generator.integers(-3, 4, clean.shape)
    protected[2, 3, 1] = int(clean[2, 3, 1]) + (4 if name == "b" else 3)
    for folder, pixels, suffix in (("clean", clean, "bmp"), ("protected", protected, "png")):
      path = tmp_path / folder / f"{name}.{suffix}"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(pixels.astype(np.uint8)).save(path)
  return tmp_path / "clean", tmp_path / "protected"


def test_budget_kept(folders: tuple[Path, Path]) -> None:
  report = verify(*folders, 4)
  assert report.ok
  assert report.checked == 3
  assert report.failures == ()
  assert report.worst is not None
  assert (report.worst.name, report.worst.max_abs_255) == ("b", 4)
  assert [(f.name, f.max_abs_255) for f in report.files] == [("a", 3), ("b", 4), ("deep/c", 3)]


def test_one_pixel_one_level_past_the_budget(folders: tuple[Path, Path]) -> None:
  path = folders[1] / "deep/c.png"
  pixels = np.array(Image.open(path))
  clean = np.asarray(Image.open(folders[0] / "deep/c.bmp"))
  for levels, ok in ((4, True), (5, False), (-4, True), (-5, False)):
    pixels[0, 0, 2] = int(clean[0, 0, 2]) + levels
    Image.fromarray(pixels).save(path)
    report = verify(*folders, 4)
    assert report.ok == ok
    assert [f.name for f in report.failures] == ([] if ok else ["deep/c"])
  assert "5 levels" in (report.failures[0].problem or "")
  assert report.checked == 3


def test_missing_counterparts_on_both_sides(folders: tuple[Path, Path]) -> None:
  (folders[0] / "a.bmp").unlink()
  (folders[1] / "b.png").unlink()
  report = verify(*folders, 4)
  assert not report.ok
  problems = {f.name: f.problem or "" for f in report.failures}
  assert set(problems) == {"a", "b"}
  assert "no clean counterpart" in problems["a"]
  assert "no protected counterpart" in problems["b"]
  assert report.checked == 1


def test_unreadable_clean_file_that_was_skipped_is_a_note(folders: tuple[Path, Path]) -> None:
  (folders[0] / "broken.jpg").write_bytes(b"")
  report = verify(*folders, 4)
  assert report.ok
  assert any("skipped" in note for f in report.files for note in f.notes)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\nabc"])
def test_unreadable_protected_file_fails(folders: tuple[Path, Path], content: bytes) -> None:
  (folders[1] / "a.png").write_bytes(content)
  report = verify(*folders, 4)
  assert [f.name for f in report.failures] == ["a"]
  assert "a.png" in (report.failures[0].problem or "")


def test_different_sizes_are_explained(folders: tuple[Path, Path]) -> None:
  Image.new("RGB", (7, 9)).save(folders[1] / "a.png")
  report = verify(*folders, 255)
  assert "is 7x9 but" in (report.failures[0].problem or "")
  assert "is 5x6" in (report.failures[0].problem or "")


def test_lossy_protected_file_is_noted(folders: tuple[Path, Path]) -> None:
  Image.open(folders[1] / "a.png").save(folders[1] / "a.jpg", quality=95)
  (folders[1] / "a.png").unlink()
  report = verify(*folders, 255)
  assert report.ok
  assert any("stored with losses" in note for note in report.files[0].notes)


def test_interrupted_folder_fails(folders: tuple[Path, Path]) -> None:
  (folders[1] / ".incomplete").write_text("{}")
  report = verify(*folders, 4)
  assert "interrupted" in (report.failures[0].problem or "")


def test_nothing_to_verify(folders: tuple[Path, Path], tmp_path: Path) -> None:
  (tmp_path / "empty").mkdir()
  for pair in (
    (folders[0], tmp_path / "empty"),
    (tmp_path / "empty", folders[1]),
    (tmp_path / "nothing", folders[1]),
  ):
    with pytest.raises(MissingDataError):
      verify(*pair, 4)
  for radius in (-1, float("nan")):
    with pytest.raises(ConfigError, match="radius_255"):
      verify(*folders, radius)
