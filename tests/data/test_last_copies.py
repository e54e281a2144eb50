"""Whose a file is, and whether it may go: bytes decide, not names; last copies stay."""

from __future__ import annotations

import json
import os
import shutil
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from udp_jax.data import manifest, marks, originals, picture_files, picture_folder
from udp_jax.data.images import Picture
from udp_jax.errors import OutputError


def _pixels(seed: int) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)


def _picture(path: Path, seed: int) -> Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(_pixels(seed)).save(path)
  return path


def _sources(folder: Path) -> dict[str, dict[str, Any]]:
  found = picture_files.list_pictures(folder)
  place = str(folder.resolve())
  return {file.name: picture_folder.source_of(file, folder=place) for file in found.files}


def _write(place: Path, records: Path, sources: dict[str, dict[str, Any]], **claim: Any) -> None:
  """What a run writes of its sources, without the end."""
  picture_folder.claim(place, [*sources], **claim)
  for number, name in enumerate(sources):
    made = Picture(_pixels(50 + number))
    picture_folder.write(place, records, name, made, source=sources[name])


def _finish(place: Path, records: Path, sources: dict[str, Any], method: str = "x") -> None:
  entries = picture_folder.finished(place, records, sources)
  record = {"method": method, "origin": {"source": "folder in"}}
  picture_folder.finish(place, list(entries.values()), record)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path, dict[str, Any]]:
  """A finished output `out` of in/a.png and in/b.png, its work folder, and the sources."""
  for number, name in enumerate("ab"):
    _picture(tmp_path / "in" / f"{name}.png", number)
  sources = _sources(tmp_path / "in")
  place, work = tmp_path / "out", tmp_path / "out.work"
  _write(place, work / "records", sources)
  _finish(place, work / "records", sources)
  return place, work, sources


def _all(place: Path) -> dict[str, bytes]:
  return {p.name: p.read_bytes() for p in place.rglob("*") if p.is_file()}


# What may be replaced.


@pytest.mark.parametrize("gone", ["input", "input and work folder", "work folder"])
def test_overwriting_keeps_the_last_copy(made, tmp_path: Path, gone: str) -> None:
  place, work, _ = made
  if "input" in gone:
    (tmp_path / "in" / "a.png").unlink()
  if "work" in gone:
    shutil.rmtree(work)
  before = _all(place)
  others = {"c": _sources(_picture(tmp_path / "other" / "c.png", 7).parent)["c"]}
  # By the work folder alone, and by another input; without both, an input that is there is unknown.
  for copies in (None, originals.copies(place, work, others)):
    with pytest.raises(OutputError, match=r"\.png may be the last copy of a picture") as caught:
      manifest.check_output(place, overwrite=True, copies=copies)
    assert "\n" not in str(caught.value) and "move it away" in str(caught.value)
  with pytest.raises(OutputError, match="last copy"):
    manifest.write_folder(place, _pixels(0)[None], ["00000"], overwrite=True)
  assert _all(place) == before


def test_what_is_somewhere_else_may_go(made, tmp_path: Path) -> None:
  place, work, sources = made
  manifest.check_output(place, overwrite=True)  # By the records beside it.
  shutil.rmtree(work)
  for known in (sources, {name: sources[name] | {"folder": "elsewhere"} for name in sources}):
    manifest.check_output(place, overwrite=True, copies=originals.copies(place, None, known))
  (tmp_path / "in").rename(tmp_path / "renamed")
  again = _sources(tmp_path / "renamed")
  copies = originals.copies(place, None, again)
  manifest.write_folder(place, _pixels(0)[None], ["00000"], overwrite=True, copies=copies)
  assert sorted(_all(place)) == ["00000.png", "manifest.json"]


def test_a_file_that_stays_needs_no_copy(made, tmp_path: Path) -> None:
  place, work, sources = made
  shutil.rmtree(tmp_path / "in")
  before = _all(place)
  picture_folder.claim(place, ["a", "b"], keep=["a", "b"], overwrite=True, copies=())
  assert {name: before[name] for name in ("a.png", "b.png")}.items() <= _all(place).items()
  # Unfinished now: what is listed is still nobody's to delete, with another run or without.
  shutil.rmtree(work)
  for overwrite in (False, True):
    with pytest.raises(OutputError, match="last copy"):
      manifest.check_output(place, overwrite=overwrite)
    with pytest.raises(OutputError, match="last copy"):
      manifest.write_folder(place, _pixels(0)[None], ["z"], overwrite=overwrite)
  assert {name: before[name] for name in ("a.png", "b.png")}.items() <= _all(place).items()


def test_a_changed_picture_of_an_extension_needs_a_copy(made, tmp_path: Path) -> None:
  place, work, _ = made
  shutil.rmtree(work)
  other = _sources(_picture(tmp_path / "other" / "a.png", 9).parent)
  copies = originals.copies(place, None, other)
  with pytest.raises(OutputError, match=r"out/a\.png may be the last copy"):
    picture_folder.claim(place, ["a"], replace=["a"], extend=True, copies=copies)
  assert (place / "manifest.json").exists()


def test_samples_and_data_sets_can_be_made_again(tmp_path: Path) -> None:
  for number, record in enumerate(
    [{"method": "samples"}, {"method": "x", "origin": {"source": "builtin", "sha256": "1"}}]
  ):
    place = tmp_path / str(number)
    manifest.write_folder(place, _pixels(0)[None], ["a"], record=record)
    manifest.write_folder(place, _pixels(1)[None], ["b"], record=record, overwrite=True)
    assert sorted(_all(place)) == ["b.png", "manifest.json"]


def test_resized_sets_of_older_versions_need_a_copy_too(tmp_path: Path) -> None:
  place, origin = tmp_path / "out", {"source": "folder photos", "sha256": "1"}
  manifest.write_folder(place, _pixels(0)[None], ["a"], record={"method": "x", "origin": origin})
  with pytest.raises(OutputError, match="last copy"):
    manifest.check_output(place, overwrite=True, copies=originals.copies(place, sets=("2",)))
  manifest.check_output(place, overwrite=True, copies=originals.copies(place, sets=("1",)))


def test_a_clean_reference_is_no_output(tmp_path: Path) -> None:
  place = tmp_path / "kept"
  manifest.write_folder(place, _pixels(0)[None], ["a"], record={"method": "clean"})
  before = _all(place)
  with pytest.raises(OutputError, match="a clean reference that udp_jax kept, which no run repl"):
    manifest.check_output(place, overwrite=True, inputs_follow=True)
  with pytest.raises(OutputError, match="which no run replaces"):
    manifest.write_folder(place, _pixels(1)[None], ["a"], overwrite=True)
  assert _all(place) == before


# What is ours.


def test_after_a_kill_a_file_under_an_announced_name_is_not_ours(made, tmp_path: Path) -> None:
  place, work, sources = tmp_path / "new", tmp_path / "new.work", made[2]
  # Killed after a.png, which has a record or, a moment earlier, has none.
  picture_folder.claim(place, ["a", "b"])
  picture_folder.write(place, work / "r", "a", Picture(_pixels(50)), source=sources["a"])
  shutil.rmtree(work)
  copies = originals.copies(place, None, sources)
  manifest.check_output(place, copies=copies)
  mine = _picture(place / "b.png", 9).read_bytes()
  for overwrite in (False, True):
    with pytest.raises(OutputError, match=r"b\.png is not a file that its run wrote"):
      manifest.check_output(place, overwrite=overwrite, copies=copies)
    with pytest.raises(OutputError, match=r"b\.png is not a file that its run wrote"):
      picture_folder.claim(place, ["a", "b"], overwrite=overwrite, copies=copies)
  with pytest.raises(OutputError, match=r"b\.png is not a file that its run wrote"):
    picture_folder.write(place, work / "r", "b", Picture(_pixels(51)))
  assert (place / "b.png").read_bytes() == mine
  (place / "b.png").unlink()
  (place / "manifest.json").write_text('{"their": "own"}')
  with pytest.raises(OutputError, match=r"not ours \(manifest\.json"):
    picture_folder.claim(place, ["a", "b"], copies=copies)
  (place / "manifest.json").unlink()
  _write(place, work / "r", sources, copies=copies)
  _finish(place, work / "r", sources)
  assert sorted(os.listdir(place)) == ["a.png", "b.png", "manifest.json"]


def test_a_kill_while_a_file_is_replaced_leaves_ours(
  made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  place, work, sources = made
  replace = os.replace

  def killed(old: str, new: Path) -> None:
    if Path(new).name == "a.png":
      raise KeyboardInterrupt
    replace(old, new)

  copies = originals.copies(place, work, sources)
  picture_folder.claim(place, ["a", "b"], replace=["a"], extend=True, copies=copies)
  monkeypatch.setattr(os, "replace", killed)
  with pytest.raises(KeyboardInterrupt):
    picture_folder.write(place, work / "records", "a", Picture(_pixels(70)), source=sources["a"])
  monkeypatch.undo()
  manifest.check_output(place, copies=copies)  # The journal is ahead of the file.
  picture_folder.claim(place, ["a", "b"], keep=["b"], replace=["a"], copies=copies)
  picture_folder.claim(place, ["a", "b"], keep=["b"], replace=["a"], copies=copies)
  picture_folder.write(place, work / "records", "a", Picture(_pixels(70)), source=sources["a"])
  manifest.check_output(place, copies=copies)
  np.testing.assert_array_equal(np.asarray(Image.open(place / "a.png")), _pixels(70))


def _huge_png() -> bytes:
  def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

  header = struct.pack(">IIBBBBB", 11000, 10000, 1, 0, 0, 0, 0)
  pixels = zlib.compress(bytes((11000 // 8 + 1) * 10000), 1)
  parts = [chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
  return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
  "content", [_huge_png(), b"\0\0\0\x18ftypheic" + bytes(40), b"\x89PNG cut short", b"text"]
)
def test_unreadable_is_not_ours_either(made, content: bytes) -> None:
  place, work, sources = made
  (place / "a.png").write_bytes(content)
  copies = originals.copies(place, work, sources)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    for options in ({"extend": True}, {"overwrite": True}):
      with pytest.raises(
        OutputError, match=r"a\.png is not the file that its manifest\.json names"
      ):
        manifest.check_output(place, copies=copies, **options)
      with pytest.raises(OutputError, match=r"a\.png is not the file"):
        picture_folder.claim(place, ["a", "b"], copies=copies, **options)
    with pytest.raises(OutputError, match=r"a\.png is missing or not as it was \(1 such files\)"):
      manifest.check_output(place)
  assert (place / "a.png").read_bytes() == content


@pytest.mark.parametrize(
  ("edit", "words"),
  [
    (lambda made: made["images"][0].pop("sha256"), r"what it says of a\.png"),
    (lambda made: made["images"][1].update(sha256="12"), r"what it says of b\.png"),
    (lambda made: made["images"][1].update(sha256=None), r"what it says of b\.png"),
    (lambda made: made["images"][0].update(source="in/a.png"), r"what it says of a\.png"),
    (lambda made: made["images"][0].update(source={"file": "a.png"}), r"what it says of a\.png"),
    (lambda made: made["images"][0].update(max_abs_255="7"), r"what it says of a\.png"),
    (lambda made: made.update(captions={"file": "a.txt"}), "its captions"),
    (lambda made: made.update(captions=[{"file": "a.txt"}]), r"what it says of a\.txt"),
    (lambda made: made.update(origin="in"), "origin"),
    (lambda made: made.update(config=[]) or made.update(config=["radius"]), "config"),
  ],
)
def test_an_edited_manifest_is_refused(made, edit, words: str) -> None:
  place, work, sources = made
  content = json.loads((place / "manifest.json").read_text())
  edit(content)
  (place / "manifest.json").write_text(json.dumps(content))
  before = _all(place)
  for options in ({}, {"extend": True}, {"overwrite": True}):
    with pytest.raises(OutputError, match=rf"manifest\.json is not as a run wrote it .*{words}"):
      manifest.check_output(place, inputs_follow=True, **options)
    with pytest.raises(OutputError, match="is not as a run wrote it"):
      picture_folder.claim(place, ["a", "b"], **options)
  picture_folder.progress_of(place, work / "records", sources, finished=True)
  assert _all(place) == before


def test_the_journal_is_gone_at_the_end(made) -> None:
  assert sorted(os.listdir(made[0])) == ["a.png", "b.png", "manifest.json"]
  assert marks.is_complete(made[0])


@pytest.mark.parametrize(
  "edit",
  [
    lambda entry: entry.update(source=["a", "b"]),
    lambda entry: entry.update(source=3),
    lambda entry: entry["source"].pop("sha256"),
    lambda entry: entry["source"].update(folder=None, file="\0"),
    lambda entry: entry["source"].update(pixels_sha256=[]),
    lambda entry: entry.update(sha256=7),
  ],
)
def test_edited_records_say_nothing(made, edit) -> None:
  place, work, sources = made
  record = work / "records" / "a.json"
  entry = json.loads(record.read_text())
  edit(entry)
  record.write_text(json.dumps(entry))
  picture_folder.progress_of(place, work / "records", sources)
  copies = originals.copies(place)
  assert sources["b"]["sha256"] in copies
  if not isinstance(entry["source"], dict) or "sha256" not in entry["source"]:
    assert sources["a"]["sha256"] not in copies
