"""Containers of every format: their chunks, and files that are damaged."""

from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.carrying import (
  PLAIN_XMP,
  SECRET,
  exif_block,
  jpeg_of,
  left_out,
  png_of,
  read_file,
  saved_chunks,
  segment,
  with_segments,
  write_file,
)
from udp_jax.data import images, photoshop


def test_png_texts_colours_and_resolution_stay_as_they_are(tmp_path: Path) -> None:
  chunks = [
    (b"gAMA", struct.pack(">I", 100000)),
    (b"cHRM", bytes(range(32))),
    (b"pHYs", struct.pack(">IIB", 11811, 11811, 1)),
    (b"tIME", b"\x07\xe9\1\2\3\4\5"),
    (b"tEXt", b"Software\0by hand"),
    (b"zTXt", b"Description\0\0" + zlib.compress(b"long " * 100)),
    (b"iTXt", "Title\0\0\0de\0Titel\0Küste".encode()),
    (b"tEXt", b"Thumbnail\0/9j/4AAQSkZJRg=="),
    (b"prVW", b"a preview"),
    (b"iDOT", b"\0" * 28),
  ]
  picture = read_file(tmp_path, png_of(*chunks), "a.png")
  assert left_out(picture) == {"embedded", "application"}
  saved = saved_chunks(tmp_path, picture)
  for kind, data in chunks[:7]:
    assert data in saved[kind]
  assert set(saved) == {kind for kind, _ in chunks[:7]} | {b"IHDR", b"IDAT", b"IEND"}
  assert list(saved).index(b"gAMA") < list(saved).index(b"IDAT")


def test_a_second_block_is_not_dropped_in_silence(tmp_path: Path) -> None:
  other = Image.Exif()
  other[0x8298] = "(c) Another"
  blocks = [exif_block(), other.tobytes()]
  jpeg = with_segments(*(segment(0xE1, block) for block in blocks))
  png = png_of(*((b"eXIf", block[6:]) for block in blocks))
  for content, name in ((jpeg, "a.jpg"), (png, "a.png")):
    assert "second" in left_out(read_file(tmp_path, content, name))
  # The same again is no loss, as ImageMagick writes it.
  raw = b"Raw profile type exif\0\0" + zlib.compress(photoshop.raw_profile("exif", blocks[0]))
  twice = read_file(tmp_path, png_of((b"eXIf", blocks[0][6:]), (b"zTXt", raw)), "a.png")
  assert "second" not in left_out(twice)
  # A block in two segments is one.
  cut = len(blocks[0]) // 2
  parts = (blocks[0][:cut], b"Exif\0\0" + blocks[0][cut:])
  split = read_file(tmp_path, with_segments(*(segment(0xE1, part) for part in parts)))
  assert "second" not in left_out(split) and b"a title" in (split.exif or b"")


def _loop() -> bytes:
  """A directory whose EXIF pointer points at itself, and a table that says it is long."""
  entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
  return b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + b"\x08\0\0\0"


HOSTILE = {
  "bomb": (b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 50_000_000, 9)),
  "bomb in iTXt": (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b" " * 50_000_000, 9)),
  "bomb in iCCP": (b"iCCP", b"x\0\0" + zlib.compress(b" " * 50_000_000, 9)),
  "cut text": (b"zTXt", b"Comment\0\0" + zlib.compress(b"abc" * 999)[:-9]),
  "no keyword": (b"tEXt", b"\0nothing"),
  "wrong length": (b"gAMA", b"\0\0"),
  "loop": (b"eXIf", _loop()),
  "long table": (b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + b"\1" * 40),
  "huge count": (b"eXIf", b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHII", 270, 2, 2**32 - 1, 8)),
  "not exif": (b"eXIf", b"nonsense"),
  "document type": (
    b"iTXt",
    b'XML:com.adobe.xmp\0\0\0\0\0<!DOCTYPE a [<!ENTITY b "c">]>'
    + PLAIN_XMP[PLAIN_XMP.index(b"<x:") :],
  ),
  "deep": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<a>" * 100_000),
  "no xml": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<rdf:RDF>"),
  "spaces": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<a " + b" " * 1_000_000 + b"/>"),
  "long tag": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<a b='" + b" x>" * 300_000 + b"'/>"),
  "false profile": (b"tEXt", b"Raw profile type iptc\0\niptc\n 999\n00"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_damaged_metadata_costs_itself_and_not_the_picture(tmp_path: Path, name: str) -> None:
  started = time.monotonic()
  picture = read_file(tmp_path, png_of(HOSTILE[name], (b"tEXt", b"Title\0sound")), "a.png")
  assert time.monotonic() - started < 5
  np.testing.assert_array_equal(picture.pixels, np.asarray(SECRET))
  assert left_out(picture) & {"damaged", "damaged_exif", "damaged_xmp", "oversized"}
  assert (b"tEXt", b"Title\0sound") in picture.chunks
  saved_chunks(tmp_path, picture)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_mutated_files_never_crash_and_never_leak(tmp_path: Path) -> None:
  generator = np.random.default_rng(0)
  jpeg = with_segments(
    segment(0xE1, exif_block(3)),
    segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + PLAIN_XMP),
    segment(0xED, b"Photoshop 3.0\0" + photoshop.resource(0x040C, b"\0" * 28 + jpeg_of())),
  )
  png = png_of((b"eXIf", exif_block()[6:]), HOSTILE["cut text"])
  buffer = io.BytesIO()
  SECRET.save(buffer, "TIFF", tiffinfo={700: PLAIN_XMP, 270: "t"}, dpi=(9, 9))
  for content, name, metadata_end in (
    (jpeg, "a.jpg", len(jpeg) - len(jpeg_of())),
    (png, "a.png", 33 + len(exif_block())),
    (buffer.getvalue(), "a.tif", len(buffer.getvalue())),
  ):
    for _ in range(60):
      mutated = bytearray(content)
      for at in generator.integers(2, metadata_end, generator.integers(1, 6)):
        mutated[at] = generator.integers(0, 256)
      try:
        picture = read_file(tmp_path, bytes(mutated), name)
      except images.BadDataError:
        continue
      fields = {key: value for key, value in picture._asdict().items() if key != "notes"}
      saved = images.encode_png(**fields)
      assert jpeg_of()[:200] not in saved
      images.read_image(write_file(tmp_path / "saved.png", saved))


def test_fill_bytes_and_long_comments_do_not_hang(tmp_path: Path) -> None:
  buffer = io.BytesIO()
  SECRET.convert("P").save(buffer, "GIF")
  gif = buffer.getvalue()
  comment = b"!\xfe" + b"\1a" * 1_200_000 + b"\0"
  started = time.monotonic()
  filled = read_file(tmp_path, jpeg_of()[:2] + b"\xff" * 3_000_000 + jpeg_of()[2:])
  assert filled.notes == ()
  commented = read_file(tmp_path, gif[:-1] + comment + gif[-1:], "a.gif")
  assert left_out(commented) == {"oversized"}
  assert time.monotonic() - started < 5
