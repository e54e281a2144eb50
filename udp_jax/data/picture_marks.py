"""Detects pictures hidden in a value, stored directly, in base64 or in hexadecimal.

When in doubt, the answer is yes, but a person's text should not be lost: in decoded texts, a mark
must match more bytes than chance would produce.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterator

_JPEG_SEGMENTS = frozenset(
  bytes([kind]) for kind in (*range(0xC0, 0xD0), 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE, 0xFF)
)
# The kinds of a JPEG file's first segment.
_JPEG_NAMES = (b"JFIF", b"JFXX", b"Exif", b"http", b"Adobe", b"ICC_", b"Photo", b"Ducky", b"MPF")
# Bytes that are quick to find, and the pattern that must match around them.
_SURE = {
  b"\x89PNG\r\n\x1a\n": None,
  b"WEBPVP8": re.compile(rb"RIFF[\s\S]{4}WEBPVP8"),
  b"ftyp": re.compile(rb"ftyp(?:avi[fs]|hei[cfsx]|hev[cx]|mif1|msf1)"),
  b"\x00\x00\x00\x0cjP  \r\n\x87\n": None,
  b"\x00\x00\x00\x0cJXL \r\n\x87\n": None,
  b"\xff\x4f\xff\x51\x00": None,
  b"8BPS\x00": re.compile(rb"8BPS\0[\1\2]\0{6}"),
}
_GIF = re.compile(rb"GIF8[79]a[\s\S]{7}")
# The reserved bytes are zero, and the header has one of the known sizes.
_BMP = re.compile(rb"BM[\s\S]{4}\0{4}[\s\S]{2}\0\0[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Characters allowed between the digits of a long text: line breaks, literal or escaped, and the
# zeros of UTF-16.
_ESCAPES = re.compile(rb"\\[nrt]|&#(?:x[0-9a-f]{1,6}|[0-9]{1,7});", re.IGNORECASE)
_BREAKS = b" \t\r\n\v\f\0\\"
_URL_DIGITS = bytes.maketrans(b"-_", b"+/")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{12,}")
_HEX = re.compile(rb"[0-9A-Fa-f]{64,}")
_SHORTEST = 3


def found(value: bytes) -> bool:
  """Returns whether a picture begins somewhere in a value.

  >>> found(b"\\x89PNG\\r\\n\\x1a\\n"), found(b"text")
  (True, False)
  """
  if len(value) < _SHORTEST:
    return False
  if _begins(value):
    return True
  text = _ESCAPES.sub(b"", value).translate(_URL_DIGITS, _BREAKS)
  for digits in _BASE64.findall(text):
    # A word may stand directly before the first digit and look like digits.
    for part in (digits[start:] for start in range(4)):
      if _begins(base64.b64decode(part + b"A" * (-len(part) % 4)), told=True):
        return True
  for digits in _HEX.findall(text):
    for part in (digits, digits[1:]):
      if _begins(bytes.fromhex(part[: len(part) // 2 * 2].decode()), told=True):
        return True
  return False


def _begins(value: bytes, *, told: bool = False) -> bool:
  """Returns whether a picture begins in these bytes; `told` if they were decoded from a text."""
  for mark, around in _SURE.items():
    if mark in value and (around is None or around.search(value)):
      return True
  return (
    any(_is_jpeg(value, at, told) for at in _places(value, b"\xff\xd8\xff"))
    or any(_is_gif(value, match.start()) for match in _GIF.finditer(value))
    or any(_is_bmp(value, match.start()) for match in _BMP.finditer(value))
    or any(_is_tiff(value, at) for mark in _TIFF for at in _places(value, mark))
  )


def _places(value: bytes, mark: bytes) -> Iterator[int]:
  at = value.find(mark)
  while at >= 0:
    yield at
    at = value.find(mark, at + 1)


def _is_jpeg(value: bytes, at: int, told: bool) -> bool:
  """Checks for a segment; if `told`, one with a known name or followed by another segment."""
  kind = value[at + 3 : at + 4]
  if kind and kind not in _JPEG_SEGMENTS:
    return False
  if not told or value.startswith(_JPEG_NAMES, at + 6):
    return True
  following = at + 4 + int.from_bytes(value[at + 4 : at + 6], "big")
  return len(value) > at + 6 and value[following : following + 1] == b"\xff"


def _is_gif(value: bytes, at: int) -> bool:
  """Checks that sizes, a colour table and a block follow, rather than the rest of a sentence."""
  width, height, flags = struct.unpack_from("<HHB", value, at + 6)
  end = at + 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
  return 0 < width < 1 << 13 and 0 < height < 1 << 13 and value[end : end + 1] in (b"", b",", b"!")


def _is_bmp(value: bytes, at: int) -> bool:
  """Checks that the pixels begin after the header."""
  pixels, header = struct.unpack_from("<II", value, at + 10)
  return 14 + header <= pixels < 1 << 16


def _is_tiff(value: bytes, at: int) -> bool:
  """Checks that the offset of the first directory lies inside the value."""
  order = "<" if value[at : at + 1] == b"I" else ">"
  big = b"+" in value[at : at + 4]
  if len(value) < at + (16 if big else 8):
    return False
  (place,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", value, at + (8 if big else 4))
  return 8 <= place < len(value) - at
