"""XMP goes along as it is, without its private properties."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest

from tests.data.carrying import (
  PLAIN_XMP,
  SECRET,
  XMP,
  left_out,
  png_of,
  read_file,
  saved_chunks,
  segment,
  with_segments,
  xmp_of,
)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".gif"])
def test_xmp_of_every_format_is_carried_byte_for_byte(tmp_path: Path, suffix: str) -> None:
  if suffix == ".png":
    content = png_of((b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(PLAIN_XMP)))
  elif suffix == ".gif":
    buffer = io.BytesIO()
    SECRET.convert("P").save(buffer, "GIF", comment=b"drawn by hand")
    content = buffer.getvalue()
    trailer = b"\1" + bytes(range(255, -1, -1)) + b"\0"
    content = content[:-1] + b"!\xff\x0bXMP DataXMP" + PLAIN_XMP + trailer + content[-1:]
  else:
    buffer = io.BytesIO()
    kind = {".jpg": "JPEG", ".webp": "WEBP", ".tif": "TIFF"}[suffix]
    options = {"tiffinfo": {700: PLAIN_XMP}} if suffix == ".tif" else {"xmp": PLAIN_XMP}
    SECRET.save(buffer, kind, **options)
    content = buffer.getvalue()
  picture = read_file(tmp_path, content, f"a{suffix}")
  chunks = saved_chunks(tmp_path, picture)
  assert xmp_of(chunks) == PLAIN_XMP
  assert picture.notes == ()
  if suffix == ".gif":
    assert b"Comment\0\0\0\0\0drawn by hand" in chunks[b"iTXt"]


def test_private_properties_of_xmp_are_cut_out_and_the_rest_stays(tmp_path: Path) -> None:
  spaces = (
    b' xmlns:e="http://ns.adobe.com/exif/1.0/" xmlns:aux="http://ns.adobe.com/exif/1.0/aux/"'
    b' xmlns:tiff="http://ns.adobe.com/tiff/1.0/"'
  )
  private = b' e:GPSLatitude="59,54N" aux:SerialNumber=\'4711\' tiff:Orientation="6"'
  element = b"<e:GPSLongitude>10,44E</e:GPSLongitude>"
  content = png_of((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP % (spaces + private, element)))
  picture = read_file(tmp_path, content, "a.png")
  assert left_out(picture) == {"position", "serial", "orientation"}
  assert picture.pixels.shape == (16, 12, 3)
  found = xmp_of(saved_chunks(tmp_path, picture))
  assert found.split() == (XMP % (spaces, b"")).replace(spaces, spaces + b"   ").split()


PRIVATE = {
  "http://www.dji.com/drone-dji/1.0/": ("GpsLatitude", "GpsLongtitude", "DroneSerialNumber"),
  "http://ns.microsoft.com/photo/1.0/": ("CameraSerialNumber",),
  "http://ns.adobe.com/exif/1.0/": ("GPSImgDirection",),
  "http://ns.adobe.com/exif/1.0/aux/": ("OwnerName", "LensSerialNumber", "SerialNumber"),
  "urn:any": ("Place_latitude", "destLongitude", "cameraownername", "hdrMakerNote"),
}


PUBLIC = {
  "http://ns.useplus.org/ldf/xmp/1.0/": ("CopyrightOwnerName", "ImageCreatorName"),
  "http://ns.adobe.com/xap/1.0/rights/": ("Owner", "WebStatement"),
  "http://ns.adobe.com/photoshop/1.0/": ("Credit", "AuthorsPosition"),
}


@pytest.mark.parametrize("form", ["attributes", "elements"])
def test_private_names_are_known_in_every_namespace(tmp_path: Path, form: str) -> None:
  spaces, properties = "", ""
  for number, (space, names) in enumerate((PRIVATE | PUBLIC).items()):
    spaces += f' xmlns:n{number}="{space}"'
    for name in names:
      value = "SECRET" if space in PRIVATE else f"said by {name}"
      tag = f"n{number}:{name}"
      properties += f' {tag}="{value}"' if form == "attributes" else f"<{tag}>{value}</{tag}>"
  inside = (spaces + properties, "") if form == "attributes" else (spaces, properties)
  packet = XMP % tuple(text.encode() for text in inside)
  head = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet)
  picture = read_file(tmp_path, with_segments(head))
  assert left_out(picture) == {"position", "serial", "maker_note"}
  found = xmp_of(saved_chunks(tmp_path, picture))
  assert b"SECRET" not in found
  for names in PUBLIC.values():
    assert all(f"said by {name}".encode() in found for name in names)


def test_xmp_is_filtered_under_any_keyword(tmp_path: Path) -> None:
  space = b' xmlns:e="http://ns.adobe.com/exif/1.0/"'
  packet = XMP % (space + b' e:GPSLatitude="59,54N"', b"")
  for kind, data in (
    (b"iTXt", b"xmp\0\0\0\0\0" + packet),
    (b"tEXt", b"Comment\0" + packet),
  ):
    picture = read_file(tmp_path, png_of((kind, data)), "a.png")
    assert left_out(picture) == {"position"}
    found = xmp_of(saved_chunks(tmp_path, picture))
    assert b"PROHIBITED" in found and b"GPS" not in found
  picture = read_file(tmp_path, with_segments(segment(0xFE, packet)))
  assert left_out(picture) == {"position"}
  # The standard keyword counts, and what another says differently is not lost in silence.
  standard = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + PLAIN_XMP)
  picture = read_file(tmp_path, png_of((kind, data), standard), "a.png")
  assert left_out(picture) == {"second"}
  assert xmp_of(saved_chunks(tmp_path, picture)) == PLAIN_XMP


def test_extended_xmp_is_joined_to_the_main_one(tmp_path: Path) -> None:
  guid = b"0123456789ABCDEF0123456789ABCDEF"
  main = XMP % (b' xmlns:n="http://ns.adobe.com/xmp/note/" n:HasExtendedXMP="' + guid + b'"', b"")
  more = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-'
    b'ns#"><rdf:Description xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
    b' xmlns:q="urn:q" q:long="a long story"/></r:RDF></x:xmpmeta>'
  )
  name = b"http://ns.adobe.com/xmp/extension/\0" + guid
  parts = [
    segment(0xE1, name + struct.pack(">II", len(more), at) + more[at : at + 100])
    for at in range(0, len(more), 100)
  ]
  head = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + main)
  picture = read_file(tmp_path, with_segments(head, *reversed(parts)))
  found = xmp_of(saved_chunks(tmp_path, picture))
  assert b'q:long="a long story"' in found and b"PROHIBITED" in found
  assert b"HasExtended" not in found and picture.notes == ()
  lost = read_file(tmp_path, with_segments(head, *parts[1:]))
  assert left_out(lost) == {"damaged_xmp"} and b"PROHIBITED" in xmp_of(saved_chunks(tmp_path, lost))
