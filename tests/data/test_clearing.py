"""Clearing a work folder: what is ours goes, and no picture's last copy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.data.made import save_picture
from udp_jax.data import clearing
from udp_jax.errors import OutputError


def _work(tmp_path: Path, *, sources: bool = True) -> tuple[Path, Path]:
  """A work folder as a run leaves it, and the folder of its pictures."""
  from udp_jax.data import picture_files
  from udp_jax.stages import protect_pictures
  from udp_jax.stages.tiles import Pictures, Tiling

  work, source = tmp_path / "out.work", tmp_path / "in"
  for number, name in enumerate("ab"):
    save_picture(source / f"{name}.png", number)
  pictures = Pictures(picture_files.list_pictures(source), Tiling(8, 2), work)
  protect_pictures._write_clean(pictures, progress=False)
  if not sources:  # As older versions did.
    for path in [work / "clean" / "manifest.json", *(work / "stages").rglob("*.json")]:
      content = json.loads(path.read_text())
      for entry in content.get("images", [content]):
        entry.pop("source")
      path.write_text(json.dumps(content))
  (work / "stages" / "protect_x" / "checkpoints" / "3").mkdir(parents=True)
  (work / "stages" / "protect_x" / "checkpoints" / "3" / "state").touch()
  (work / "stages" / "protect_x" / "metrics.jsonl").touch()
  (work / "config.json").write_text('{"data": {}, "seed": 0, "performance": {}}')
  return work, source


@pytest.mark.parametrize("sources", [True, False])
def test_what_a_run_left_is_cleared_and_nothing_else(tmp_path: Path, sources: bool) -> None:
  work, _ = _work(tmp_path, sources=sources)
  save_picture(work / "stages" / "protect_x" / "checkpoints" / "saved.png")
  (work / "notes.txt").touch()
  clearing.clear(work)
  left = {path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file()}
  assert left == {"stages/protect_x/checkpoints/saved.png", "notes.txt"}


@pytest.mark.parametrize("sources", [True, False])
@pytest.mark.parametrize("case", ["gone", "changed", "folder gone"])
def test_the_last_copy_of_a_picture_is_never_deleted(
  tmp_path: Path, sources: bool, case: str
) -> None:
  work, source = _work(tmp_path, sources=sources)
  if case == "changed":
    save_picture(source / "b.png", 7)
  elif case == "gone":
    (source / "b.png").unlink()
  else:
    source.rename(tmp_path / "elsewhere")
  before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
  with pytest.raises(OutputError, match=r"\.png may be the last copy of a picture: .*; move them"):
    clearing.clear(work)
  assert {path: path.read_bytes() for path in work.rglob("*") if path.is_file()} == before
  for file in ("a.png", "b.png"):
    (work / "clean" / file).unlink()
  clearing.clear(work)
  assert not (work / "clean").exists()


def test_a_clean_picture_that_somebody_changed_is_kept(tmp_path: Path) -> None:
  work, _ = _work(tmp_path)
  save_picture(work / "clean" / "a.png", 5)
  with pytest.raises(OutputError, match=r"a\.png is not the file that its manifest"):
    clearing.clear(work)
  assert (work / "config.json").exists() and (work / "clean" / "b.png").exists()


def test_the_pixels_decide_whether_a_picture_is_there(tmp_path: Path) -> None:
  work, source = _work(tmp_path)
  with Image.open(source / "a.png") as image:
    image.load()
    image.save(source / "a.png", dpi=(300, 300), compress_level=1)
  clearing.clear(work)
  assert not (work / "clean").exists()
