"""EXIF goes along, without previews and private things."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from PIL import Image

from tests.data.carrying import (
  assert_no_preview,
  exif_block,
  left_out,
  png_of,
  read_file,
  saved_chunks,
  segment,
  with_segments,
)
from udp_jax.data import photoshop


@pytest.mark.parametrize("orientation", [1, 6])
def test_exif_goes_along_without_previews_and_private_things(
  tmp_path: Path, orientation: int
) -> None:
  picture = read_file(tmp_path, with_segments(segment(0xE1, exif_block(orientation))))
  expected = {"exif_preview", "maker_note", "position", "serial"}
  assert left_out(picture) == expected | ({"orientation"} if orientation != 1 else set())
  assert picture.pixels.shape == ((16, 12, 3) if orientation == 6 else (12, 16, 3))
  chunks = saved_chunks(tmp_path, picture)
  assert_no_preview(chunks)
  (block,) = chunks[b"eXIf"]
  assert b"SERIAL" not in block and b"forgotten" not in block
  with Image.open(tmp_path / "saved.png") as saved:
    exif = saved.getexif()
    assert (exif[0x010E], exif[0x013B], exif[0x8298]) == ("a title", "An Artist", "(c) An Artist")
    assert not exif.get_ifd(0x8825) and 0x0112 not in exif
    inner = exif.get_ifd(0x8769)
    assert inner[0x829A] == 0.01 and inner[0x9286] == b"ASCII\0\0\0a comment"
    assert 0x927C not in inner and 0xA431 not in inner


@pytest.mark.parametrize(
  "keyword", [b"Raw profile type exif", b"Raw Profile Type APP1", b"RAW PROFILE TYPE Exif "]
)
@pytest.mark.parametrize("prefix", [b"Exif\0\0", b""])
def test_exif_in_a_raw_profile_is_no_way_out(tmp_path: Path, keyword: bytes, prefix: bytes) -> None:
  block = prefix + exif_block().removeprefix(b"Exif\0\0")
  text = zlib.compress(photoshop.raw_profile("exif", block))
  picture = read_file(tmp_path, png_of((b"zTXt", keyword + b"\0\0" + text)), "a.png")
  assert {"exif_preview", "position"} <= left_out(picture)
  chunks = saved_chunks(tmp_path, picture)
  assert_no_preview(chunks)
  assert b"a title" in chunks[b"eXIf"][0]
