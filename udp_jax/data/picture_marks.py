"""How pictures begin: whether one is hidden in a value, as it is, in base64 or in hexadecimal.

Safe is to say yes where one may be, but a text of a person is not to be lost: what is looked for
in decoded texts must fit in more bytes than chance brings together.
"""

from __future__ import annotations

import base64
import re
import struct

_JPEG = re.compile(rb"\xff\xd8\xff(?=[\xc0-\xcf\xdb\xdd\xe0-\xef\xfe\xff]|\Z)")
# What the first segment of a JPEG file says it is.
_JPEG_NAMES = (b"JFIF", b"JFXX", b"Exif", b"http", b"Adobe", b"ICC_", b"Photo", b"Ducky", b"MPF")
_SURE = re.compile(
  rb"\x89PNG\r\n\x1a\n|RIFF[\s\S]{4}WEBPVP8|[\s\S]{4}ftyp(?:avi[fs]|hei[cfsx]|hev[cx]|mif1|msf1)"
  rb"|\x00\x00\x00\x0c(?:jP  |JXL )\r\n\x87\n|\xff\x4f\xff\x51\x00|8BPS\x00[\x01\x02]\x00{6}"
)
_GIF = re.compile(rb"GIF8[79]a")
_BMP = re.compile(rb"BM[\s\S]{4}\0{4}[\s\S]{2}\0\0[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0")
_TIFF = re.compile(rb"II[*+]\0|MM\0[*+]")

# What may stand between the digits of a long text: breaks, as they are and escaped, and zeros of
# UTF-16.
_BREAKS = re.compile(rb"\\[nrt]|&#(?:x[0-9a-f]+|[0-9]+);|[\s\0\\]+", re.IGNORECASE)
_URL_DIGITS = bytes.maketrans(b"-_", b"+/")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{12,}")
_HEX = re.compile(rb"(?:[0-9A-Fa-f]{2}){32,}")
_SHORTEST = 3


def found(value: bytes) -> bool:
  """Whether a picture begins somewhere in a value."""
  if len(value) < _SHORTEST:
    return False
  if _begins(value):
    return True
  text = _BREAKS.sub(b"", value).translate(_URL_DIGITS)
  for digits in _BASE64.findall(text):
    # A word may stand before the first digit, and count as one.
    for part in (digits[start:] for start in range(4)):
      if _begins(base64.b64decode(part + b"A" * (-len(part) % 4)), told=True):
        return True
  for digits in _HEX.findall(text):
    for part in (digits, digits[1:-1]):
      if _begins(bytes.fromhex(part.decode()), told=True):
        return True
  return False


def _begins(value: bytes, *, told: bool = False) -> bool:
  """Whether a picture begins in these bytes; `told` if chance may have made them of a text."""
  return (
    _SURE.search(value) is not None
    or any(not told or _is_jpeg(value, match.end()) for match in _JPEG.finditer(value))
    or any(_is_gif(value, match.end()) for match in _GIF.finditer(value))
    or any(_is_bmp(value, match.start()) for match in _BMP.finditer(value))
    or any(_is_tiff(value, match.start()) for match in _TIFF.finditer(value))
  )


def _is_jpeg(value: bytes, at: int) -> bool:
  """Whether the first segment has a known name, or another segment follows it."""
  if value[at + 3 :].startswith(_JPEG_NAMES):
    return True
  following = at + 1 + int.from_bytes(value[at + 1 : at + 3], "big")
  return len(value) > at + 3 and value[following : following + 1] == b"\xff"


def _is_gif(value: bytes, at: int) -> bool:
  """Whether sizes, a table of colours and a block follow, and not the rest of a sentence."""
  if len(value) < at + 7:
    return False
  width, height, flags = struct.unpack_from("<HHB", value, at)
  end = at + 7 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
  return 0 < width < 1 << 13 and 0 < height < 1 << 13 and value[end : end + 1] in (b"", b",", b"!")


def _is_bmp(value: bytes, at: int) -> bool:
  pixels, header = struct.unpack_from("<II", value, at + 10)
  return 14 + header <= pixels < 1 << 16


def _is_tiff(value: bytes, at: int) -> bool:
  """Whether the first directory's place is in the value."""
  order = "<" if value[at : at + 1] == b"I" else ">"
  big = b"+" in value[at : at + 4]
  if len(value) < at + (16 if big else 8):
    return False
  (place,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", value, at + (8 if big else 4))
  return 8 <= place < len(value) - at
