"""Texts of pictures lose their private lines."""

from __future__ import annotations

import zlib
from pathlib import Path

from tests.data.carrying import (
  left_out,
  png_of,
  read_file,
  saved_chunks,
  segment,
  with_segments,
)
from udp_jax.data import containers


def test_private_texts_of_png_stay_behind_whatever_their_form(tmp_path: Path) -> None:
  public = [
    (b"tEXt", b"Software\0Latitude 5, drawn by hand"),
    (b"tEXt", b"exif:ExposureTime\0" + b"1/60"),
    (b"iTXt", b"Copyright\0\0\0\0\0Copyright owner name: An Artist"),
  ]
  mixed = b"made at home\nGPS Position : 52 N, 13 E\nby hand\nSerial Number=SECRET\n"
  private = [
    (b"tEXt", b"exif:GPSLatitude\0SECRET"),
    (b"zTXt", b"exif:GPSLongitude\0\0" + zlib.compress(b"SECRET")),
    (b"tEXt", b"exif:BodySerialNumber\0SECRET"),
    (b"tEXt", b"exif:MakerNote\x0078, 105, 107"),
    (b"tEXt", b"Thumb::URI\0file:///home/SECRET/a.png"),
    (b"tEXt", b"Thumb::Image::Width\x0064"),
    (b"tEXt", b"svg:base-uri\0file:///home/SECRET/a.svg"),
    (b"tEXt", b"Description\0" + mixed),
    (b"zTXt", b"Long\0\0" + zlib.compress(mixed)),
    (b"iTXt", b"Comment\0\0\0de\0Notiz\0" + mixed),
    (b"iTXt", b"Other\0\1\0\0\0" + zlib.compress(mixed)),
    (b"tEXt", b'params\0{"lens": 1, "gpsLatitude": 52.5}'),
  ]
  picture = read_file(tmp_path, png_of(*public, *private), "a.png")
  assert left_out(picture) == {"position", "serial", "maker_note", "file_place"}
  kept = b"made at home\nby hand\n"
  assert list(picture.chunks[:3]) == public
  assert [containers.text_of(*chunk) for chunk in picture.chunks[3:]] == [
    (b"Description", kept), (b"Long", kept), (b"Comment", kept), (b"Other", kept),
  ]  # fmt: skip
  assert picture.chunks[5][1].startswith(b"Comment\0\0\0de\0Notiz\0")
  saved_chunks(tmp_path, picture)


def test_comments_lose_private_lines_only(tmp_path: Path) -> None:
  comments = (b"GPSLatitude=52.5\nby An Artist", b"GPSLongitude=13.4")
  jpeg = with_segments(*(segment(0xFE, comment) for comment in comments))
  picture = read_file(tmp_path, jpeg)
  assert left_out(picture) == {"position"}
  assert picture.chunks[-1] == containers.text_chunk(b"Comment", b"by An Artist")
  assert not any(b"GPS" in data for _, data in picture.chunks)
