"""Which pictures a folder holds for a run: not ours, and not hidden ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.made import finished_folder, save_picture
from udp_jax.data import folder, listing, marks
from udp_jax.errors import MissingDataError
from udp_jax.runtime import workdir


def test_nested_folders_of_ours_are_left_out(
  tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
  source = tmp_path / "in"
  save_picture(source / "mine.png")
  save_picture(source / "album" / "also.png")
  finished_folder(source / "out")
  save_picture(source / "half" / "c.png")
  (source / "half" / marks.INCOMPLETE).write_text('{"files": ["c.png"]}')
  save_picture(source / "out.work" / "photographs" / "d.png")
  workdir.mark(source / "out.work")
  save_picture(source / "old.work" / "clean" / "e.png")
  (source / "old.work" / "config.json").write_text('{"data": {}, "seed": 0, "performance": {}}')
  save_picture(source / "theirs" / "f.png")
  (source / "theirs" / "config.json").write_text('{"theme": "dark"}')
  found = listing.scan(source)
  assert [file.name for file in found.files] == ["album/also", "mine", "theirs/f"]
  assert found.left_out == ("half", "old.work", "out", "out.work")
  (line,) = caplog.messages
  assert line.endswith("left out 4 folders that udp_jax wrote: half, old.work, out, out.work")
  loaded = folder.load_folder(
    source, image_size=None, limit=None, seed=0, strict=False, classes=None
  )
  assert loaded.origin["left_out"] == ["half", "old.work", "out", "out.work"]
  for name in ("mine.png", "album/also.png", "theirs/f.png"):
    (source / name).unlink()
  with pytest.raises(MissingDataError, match="no images in it but in 4 folders that udp_jax wrote"):
    folder.load_folder(source, image_size=None, limit=None, seed=0, strict=False, classes=None)


def test_links_to_what_is_ours_are_left_out(
  tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
  source = tmp_path / "in"
  save_picture(source / "mine.png")
  save_picture(tmp_path / "theirs" / "x.png")
  ours = finished_folder(tmp_path / "out", names=("a", "sub/b"))
  (source / "theirs.png").symlink_to("../theirs/x.png")
  (source / "z.png").symlink_to("../out/a.png")
  (source / "part").symlink_to("../out/sub")
  found = listing.scan(source)
  assert [file.name for file in found.files] == ["mine", "theirs"]
  assert found.linked == ("z.png",) and found.left_out == ("part",)
  assert any(
    line.endswith("left out 1 links to what udp_jax wrote: z.png") for line in caplog.messages
  )
  loaded = folder.load_folder(
    source, image_size=None, limit=None, seed=0, strict=False, classes=None
  )
  assert loaded.origin["linked"] == ["z.png"]
  # A folder of ours that is asked for is read, links within it and all.
  (tmp_path / "again").symlink_to("out")
  (ours / "sub" / "c.png").symlink_to("../a.png")
  for place in (ours, tmp_path / "again"):
    assert [file.name for file in listing.scan(place).files] == ["a", "sub/b", "sub/c"]
  assert [file.name for file in listing.scan(ours / "sub").files] == ["b", "c"]
  for name in ("mine.png", "theirs.png", "part"):
    (source / name).unlink()
  with pytest.raises(MissingDataError, match=r"1 links to what udp_jax wrote \(z\.png\)"):
    folder.load_folder(source, image_size=None, limit=None, seed=0, strict=False, classes=None)


def test_hidden_pictures_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
  for name in (".dot.png", ".hid/p0.png", ".hid/deep/p1.JPG", "sub/.x.heic"):
    (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "in" / name).touch()
  for name in ("._mine.png", ".DS_Store", ".hid/notes.txt", ".hid/._p0.png", ".udp-lock"):
    (tmp_path / "in" / name).touch()
  with pytest.raises(MissingDataError, match=r"no images in it .4 hidden ones are passed over"):
    folder.load_folder(
      tmp_path / "in", image_size=None, limit=None, seed=0, strict=False, classes=None
    )
  save_picture(tmp_path / "in" / "mine.png")
  caplog.clear()
  found = listing.scan(tmp_path / "in")
  assert found.hidden == (".dot.png", ".hid/deep/p1.JPG", ".hid/p0.png", "sub/.x.heic")
  (line,) = caplog.messages
  assert "passed over 4 hidden pictures: .dot.png, .hid/deep/p1.JPG" in line
  loaded = folder.load_folder(
    tmp_path / "in", image_size=None, limit=None, seed=0, strict=False, classes=None
  )
  assert loaded.origin["hidden"] == 4 and loaded.names == ("mine",)
