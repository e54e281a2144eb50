"""Pictures hidden in values are found in every form, and texts of people are not taken for them."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from udp_jax.data import picture_marks

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]


def _picture(kind: str) -> bytes:
  buffer = io.BytesIO()
  pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
  Image.fromarray(pixels).save(buffer, kind)
  return buffer.getvalue()


def _spread(text: bytes, between: bytes) -> bytes:
  return between.join(text[at : at + 1] for at in range(len(text)))


HIDDEN = {
  "as it is": lambda p: p,
  "behind other bytes": lambda p: b"\1\2\3 note: " + p + b"rest",
  "base64": base64.b64encode,
  "base64 behind a word": lambda p: b"pic " + base64.b64encode(p),
  "base64 as an address": lambda p: b"data:image/any;base64," + base64.b64encode(p),
  "base64 for addresses": base64.urlsafe_b64encode,
  "base64 of more": lambda p: base64.b64encode(b"{" + p + b"}"),
  "base64 with breaks": lambda p: _spread(base64.b64encode(p), b"\n"),
  "base64 with escaped breaks": lambda p: base64.encodebytes(p).replace(b"\n", b"\\n"),
  "base64 with XML's breaks": lambda p: base64.encodebytes(p).replace(b"\n", b"&#xA;"),
  "base64 in PHP's JSON": lambda p: base64.b64encode(p).replace(b"/", b"\\/"),
  "base64 in UTF-16": lambda p: base64.b64encode(p).decode().encode("utf-16"),
  "hexadecimal": lambda p: p.hex().encode(),
  "hexadecimal with breaks": lambda p: p.hex(" ").upper().encode(),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("form", sorted(HIDDEN))
def test_pictures_are_found(kind: str, form: str) -> None:
  assert picture_marks.found(HIDDEN[form](_picture(kind)))


HARMLESS = [
  b"",
  b"BM",
  b"A GIF89a file is what I made of it, and a RIFF too",
  b"see https://example.org/9j/4.png and /9j/47/gallery/index",
  b"II* or MM* says TIFF; BM says BMP; \xc2\xa9 2024 An Artist",
  b"palette: ffd8ff ffd8ff fec0cb e0e0e0 101010 202020 303030 404040 505050 606060 707070 808080",
  json.dumps({"prompt": "a cat, masterpiece", "seed": 123456789, "hash": "ffd8ff" * 5}).encode(),
  "Küste im Winter, fotografiert von Anna".encode("utf-16"),
  b"the quick brown fox jumps over the lazy dog and/or the cat " * 2000,
]


@pytest.mark.parametrize("text", HARMLESS, ids=range(len(HARMLESS)))
def test_texts_are_no_pictures(text: bytes) -> None:
  assert not picture_marks.found(text)


def test_bytes_of_chance_are_rarely_taken_for_a_picture() -> None:
  generator = np.random.default_rng(1)
  found = 0
  for _ in range(100):
    value = generator.bytes(4096)
    found += sum(map(picture_marks.found, (value, base64.b64encode(value), value.hex().encode())))
  assert found == 0
