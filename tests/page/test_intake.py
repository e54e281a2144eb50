"""Uploads: names, limits and archives, most of them hostile."""

from __future__ import annotations

import io
import random
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

from tests.drill import mutate
from udp_jax.errors import BadDataError, ConfigError, UserError
from udp_jax.page import intake
from udp_jax.page.intake import Limits

LIMITS = Limits(pictures=5, megapixels=1.0, size=1 << 20)


def png(height: int = 8, width: int = 8) -> bytes:
  stream = io.BytesIO()
  Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(stream, "png")
  return stream.getvalue()


def put(tmp_path: Path, name: str, content: bytes, limits: Limits = LIMITS) -> int:
  upload = tmp_path / "upload"
  upload.write_bytes(content)
  try:
    return intake.add(tmp_path / "pictures", name, upload, limits)
  finally:
    assert not upload.exists()


def listed(tmp_path: Path) -> list[str]:
  folder = tmp_path / "pictures"
  return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def archive(*entries: tuple[str | zipfile.ZipInfo, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, "w", kind) as made:
    for name, content in entries:
      made.writestr(name, content)
  return stream.getvalue()


@pytest.mark.parametrize(
  "name",
  [
    "", "/etc/passwd", "../a.png", "a/../../b.png", "a/./b.png", "a//b.png", "C:/a.png", "C:a.png",
    "\\\\host\\share\\a.png", "..\\a.png", "a\nb.png", "a\0b.png", "x" * 300 + ".png",
    "/".join(["folder"] * 200), "~/a/../b.png",
  ],
)  # fmt: skip
def test_unsafe_names_are_refused(name: str, tmp_path: Path) -> None:
  with pytest.raises(BadDataError):
    put(tmp_path, name, png())
  assert list(tmp_path.iterdir()) == []


def test_names_and_folders_stay_as_they_were(tmp_path: Path) -> None:
  names = ["Été (1) #2.png", "a b/c's & d.PNG", "日本/絵.png"]
  assert [put(tmp_path, name, png()) for name in names] == [1, 1, 1]
  assert listed(tmp_path) == sorted(names)
  assert intake.place_of("a\\b.png") == PurePosixPath("a/b.png")


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
  entries = [("__MACOSX/._a.png", b"x"), (".DS_Store", b"x"), ("in/.git/config", b"x")]
  assert put(tmp_path, "all.zip", archive(*entries, ("in/a.png", png()), ("in/a.txt", b"cat"))) == 2
  assert put(tmp_path, ".hidden.png", png()) == 0
  assert listed(tmp_path) == ["in/a.png", "in/a.txt"]


def test_a_name_is_taken_once(tmp_path: Path) -> None:
  put(tmp_path, "a.png", png())
  with pytest.raises(BadDataError, match="there already"):
    put(tmp_path, "A.png", png())
  with pytest.raises(BadDataError, match="there already"):
    put(tmp_path, "more.zip", archive(("b.png", png()), ("a.png", png())))
  assert listed(tmp_path) == ["a.png"]


@pytest.mark.parametrize(("first", "second"), [("a", "A/b.png"), ("a/b.png", "a")])
def test_a_file_is_no_folder(first: str, second: str, tmp_path: Path) -> None:
  put(tmp_path, first, png())
  with pytest.raises(BadDataError, match="there already"):
    put(tmp_path, second, png())
  assert listed(tmp_path) == [first]


def _link() -> bytes:
  info = zipfile.ZipInfo("a.png")
  info.external_attr = (stat.S_IFLNK | 0o777) << 16
  return archive((info, b"/etc/passwd"))


def _lies(smaller: int) -> bytes:
  """An archive whose lists declare a file of one byte less than it unpacks to."""
  content = bytes(range(256)) * 64
  data = bytearray(archive(("a.png", content), kind=zipfile.ZIP_DEFLATED))
  size = struct.pack("<I", len(content))
  while (at := data.find(size)) >= 0:
    data[at : at + 4] = struct.pack("<I", len(content) - smaller)
  return bytes(data)


def _encrypted() -> bytes:
  data = bytearray(archive(("a.png", png())))
  data[6] |= 1
  data[data.find(b"PK\x01\x02") + 8] |= 1
  return bytes(data)


def _over_itself() -> bytes:
  """Two entries of the list that share one file's bytes."""
  data = archive(("a.png", png()), ("b.png", png()))
  first, second = data.find(b"PK\x01\x02"), data.rfind(b"PK\x01\x02")
  made = bytearray(data)
  made[second + 42 : second + 46] = made[first + 42 : first + 46]
  return bytes(made)


HOSTILE: dict[str, Callable[[], bytes]] = {
  "no archive": lambda: b"PK\x03\x04 not one",
  "empty": lambda: b"",
  "cut off": lambda: archive(("a.png", png() * 50))[:-40],
  "bomb": lambda: archive(("a.png", bytes(8 << 20)), kind=zipfile.ZIP_DEFLATED),
  "too many": lambda: archive(*((f"{n}.png", b"") for n in range(100))),
  "too large": lambda: archive(("a.png", bytes(np.random.default_rng(0).bytes(2 << 20)))),
  "parent": lambda: archive(("a.png", png()), ("../b.png", png())),
  "absolute": lambda: archive(("/tmp/b.png", png())),
  "drive": lambda: archive(("C:\\b.png", png())),
  "link": _link,
  "encrypted": _encrypted,
  "nested": lambda: archive(("a.zip", archive(("a.png", png())))),
  "twice": lambda: archive(("a.png", png()), ("A.png", png())),
  "file and folder": lambda: archive(("a", b"x"), ("a/b.png", png())),
  "says too little": lambda: _lies(1),
  "over itself": _over_itself,
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_archives_leave_nothing(kind: str, tmp_path: Path) -> None:
  put(tmp_path, "before.png", png())
  with pytest.raises(UserError) as refused:
    put(tmp_path, "in.zip", HOSTILE[kind]())
  assert "\n" not in str(refused.value) and str(tmp_path) not in str(refused.value)
  assert listed(tmp_path) == ["before.png"]
  assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_damaged_archives_are_whole_or_nothing(tmp_path: Path) -> None:
  """The drill's mutations of a good archive: each comes in whole, or is refused by a UserError."""
  whole = archive(("a.png", png()), ("b/c.png", png(30, 40)), kind=zipfile.ZIP_DEFLATED)
  for number in range(300):
    place = tmp_path / str(number)
    place.mkdir()
    damaged = mutate.mutate(random.Random(number), whole, mutate.ANY)
    try:
      count = put(place, "in.zip", damaged)
    except UserError:
      count = 0
    assert len(listed(place)) == count


def test_limits_are_of_all_files_together(tmp_path: Path) -> None:
  for number in range(LIMITS.files):
    put(tmp_path, f"{number}.txt", b"cat")
  with pytest.raises(ConfigError, match=f"{LIMITS.files + 1} files"):
    put(tmp_path, "one.txt", b"cat")
  large = LIMITS._replace(pictures=100)
  put(tmp_path, "large.bin", bytes(1 << 19), large)
  with pytest.raises(ConfigError, match="MiB"):
    put(tmp_path, "more.bin", bytes(1 << 19), large)


def test_pictures_are_counted_by_their_headers(tmp_path: Path) -> None:
  for number in range(5):
    put(tmp_path, f"{number}.png", png(400, 500))
  intake.check_pictures(tmp_path / "pictures", LIMITS)
  with pytest.raises(ConfigError, match="--max_pictures"):
    intake.check_pictures(tmp_path / "pictures", LIMITS._replace(pictures=4))
  # A header that promises 3,600 megapixels, with no pixels behind it.
  huge = bytearray(png())
  huge[16:24] = struct.pack(">II", 60_000, 60_000)
  (tmp_path / "pictures" / "4.png").write_bytes(huge)
  intake.check_pictures(tmp_path / "pictures", LIMITS)  # Its checksum is wrong: read as nothing.
  (tmp_path / "pictures" / "4.png").write_bytes(png(1000, 300))
  with pytest.raises(ConfigError, match="megapixels.*--max_megapixels"):
    intake.check_pictures(tmp_path / "pictures", LIMITS)


def test_packing_keeps_bytes_and_folders(tmp_path: Path) -> None:
  folder = tmp_path / "out"
  for name in ("a b/é.png", "manifest.json", ".udp-lock"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(name.encode())
  intake.pack(folder, tmp_path / "out.zip")
  with zipfile.ZipFile(tmp_path / "out.zip") as made:
    assert made.namelist() == ["a b/é.png", "manifest.json"]
    assert made.read("a b/é.png") == "a b/é.png".encode()
  assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.zip"]
