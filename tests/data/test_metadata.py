"""What a picture carries besides pixels: kept, converted or left out, as the one table says."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.carrying import (
  SECRET,
  XMP,
  assert_no_preview,
  jpeg_of,
  left_out,
  png_of,
  read_file,
  saved_chunks,
  segment,
  with_segments,
  xmp_of,
)
from udp_jax.data import metadata, photoshop


def test_previews_of_every_kind_stay_behind(tmp_path: Path) -> None:
  preview = jpeg_of()
  start = b"/9j/4AAQSkZJRg=="
  thumbnails = (
    b'<xmp:Thumbnails xmlns:xmp="http://ns.adobe.com/xap/1.0/"><rdf:Alt><rdf:li'
    b' xmlns:g="http://ns.adobe.com/xap/1.0/g/img/"><g:image>' + start + b"</g:image></rdf:li>"
    b"</rdf:Alt></xmp:Thumbnails>"
  )
  other = b'<a:b xmlns:a="urn:any"><a:c>' + start + b'</a:c><a:d a:e="' + start + b'"/></a:b>'
  resources = photoshop.resource(0x040C, b"\0" * 28 + preview)
  resources += photoshop.resource(0x03F3, b"\0" * 9)
  resources += photoshop.resource(
    0x0404, b"\x1c\x02\x05\x00\x05title\x1c\x02\xca\x00\x03\xff\xd8\xff"
  )
  jfif = b"JFIF\0\1\1\1" + struct.pack(">HHBB", 72, 72, 2, 2) + b"\0" * 12
  content = jpeg_of()[:2] + segment(0xE0, jfif) + segment(0xE0, b"JFXX\0\x10" + preview)
  content += segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP % (b"", thumbnails + other))
  content += segment(0xED, b"Photoshop 3.0\0" + resources)
  content += segment(0xE2, b"FPXR\0" + preview) + segment(0xE2, b"MPF\0II*\0\x08\0\0\0\0\0")
  content += segment(0xEC, b"Ducky") + segment(0xEB, b"JP\0\1") + segment(0xFE, b"a note")
  picture = read_file(tmp_path, content + jpeg_of()[20:] + preview, "a.mpo")
  assert left_out(picture) == {
    *("jfif_preview", "xmp_preview", "photoshop_preview", "iptc_preview", "photoshop", "flashpix"),
    *("second_picture", "application", "credentials"),
  }
  np.testing.assert_array_equal(picture.pixels, np.asarray(Image.open(io.BytesIO(jpeg_of()))))
  chunks = saved_chunks(tmp_path, picture)
  assert_no_preview(chunks)
  xmp = xmp_of(chunks)
  assert xmp == XMP % (b"", b'<a:b xmlns:a="urn:any"><a:d /></a:b>')
  assert chunks[b"zTXt"][0].startswith(b"Raw profile type iptc\0")
  iptc = photoshop.from_raw_profile(zlib.decompress(chunks[b"zTXt"][0].split(b"\0\0", 1)[1]))
  assert iptc == photoshop.resource(0x0404, b"\x1c\x02\x05\x00\x05title")
  assert b"Comment\0\0\0\0\0a note" in chunks[b"iTXt"]
  assert struct.unpack(">IIB", chunks[b"pHYs"][0]) == (2835, 2835, 1)


@pytest.mark.parametrize("place", ["EXIF", "XMP", "PNG text", "IPTC"])
def test_pictures_of_other_formats_are_previews_too(tmp_path: Path, place: str) -> None:
  buffer = io.BytesIO()
  SECRET.save(buffer, "WEBP")
  preview = buffer.getvalue()
  text = base64.b64encode(preview)
  if place == "EXIF":
    exif = Image.Exif()
    exif[0x013B], exif[0xFDE8] = "An Artist", preview
    content, expected = with_segments(segment(0xE1, exif.tobytes())), "embedded"
  elif place == "XMP":
    packet = XMP % (b"", b'<a:b xmlns:a="urn:any">' + text + b"</a:b>")
    head = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet)
    content, expected = with_segments(head), "xmp_preview"
  elif place == "PNG text":
    content, expected = (
      png_of((b"tEXt", b"Author\0An Artist"), (b"tEXt", b"b\0" + text)),
      "embedded",
    )
  else:
    # One record of many: who made it goes along.
    records = b"\x1c\x02\x50\x00\x09An Artist"
    records += b"\x1c\x02\xf0" + struct.pack(">H", len(preview)) + preview
    block = b"Photoshop 3.0\0" + photoshop.resource(photoshop.IPTC, records)
    content, expected = with_segments(segment(0xED, block)), "iptc_preview"
  picture = read_file(tmp_path, content, "a.png" if place == "PNG text" else "a.jpg")
  assert left_out(picture) == {expected}
  chunks = saved_chunks(tmp_path, picture)
  values = [value for kind, found in chunks.items() if kind != b"IDAT" for value in found]
  values += [zlib.decompress(value.partition(b"\0\0")[2]) for value in chunks.get(b"zTXt", [])]
  marks = (preview[:40], text[:40], preview.hex()[:70].encode())
  assert not any(mark in value for value in values for mark in marks)
  artist = b"An Artist"
  assert any(artist in value or artist.hex().encode() in value for value in values)


def test_every_row_is_whole_and_every_reader_knows_it() -> None:
  for key, row in metadata.TABLE.items():
    assert row.fate in (metadata.KEPT, metadata.CONVERTED, metadata.DROPPED), key
    assert row.what and row.found and row.how
    assert "\n" not in metadata.note(key)
  for group in ("tags", "resources", "chunks", "properties"):
    values = [value for row in metadata.TABLE.values() for value in getattr(row, group)]
    assert len(values) == len(set(values)), group
  assert metadata.markdown().count("\n") == len(metadata.TABLE) + 1
