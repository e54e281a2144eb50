"""Filters Photoshop resources ("8BIM") and the IPTC records in them."""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from udp_jax.data import metadata, picture_marks

IPTC, DIGEST, RESOLUTION = 0x0404, 0x0425, 0x03ED
_SIGNATURE = b"8BIM"
_MAX_PIECES = 50_000
_RAW_PROFILE = re.compile(rb"\s*(\w+)\s+(\d+)\s+([0-9a-fA-F\s]*)\Z")


class Resources(NamedTuple):
  """The resources that are kept.

  Attributes:
    block: the kept resources in order; empty if there are none.
    dropped: keys of `metadata.TABLE`.
    density: (x, y) in pixels per metre, or None.
  """

  block: bytes
  dropped: tuple[str, ...]
  density: tuple[int, int] | None = None


def filtered(block: bytes) -> Resources:
  """Keeps the resources that the table keeps; never raises on damaged content.

  >>> filtered(b"nothing").block
  b''
  """
  dropped: list[str] = []
  kept: list[tuple[int, bytes]] = []
  density, changed, at = None, False, 0
  for _ in range(_MAX_PIECES):
    if at + 12 > len(block):
      break
    signature, number, name = struct.unpack_from(">4sHB", block, at)
    start = at + 6 + (name + 2) // 2 * 2
    if start + 4 > len(block):
      break
    (size,) = struct.unpack_from(">I", block, start)
    data = block[start + 4 : start + 4 + size]
    if len(data) < size or not signature.isalnum():
      break
    key = metadata.BY_RESOURCE.get(number, "photoshop") if signature == _SIGNATURE else "photoshop"
    if number == RESOLUTION and size >= 16:
      density = _density(data)
    if metadata.TABLE[key].fate == metadata.DROPPED:
      dropped.append(key)
    elif key == "iptc":
      if number == IPTC:
        data, lost = records(data)
        dropped += lost
        changed = changed or bool(lost)
      if picture_marks.found(data):
        dropped.append("iptc_preview")
      elif data:
        kept.append((number, data))
    at = start + 4 + size + size % 2
  if block[at:].strip(b"\0"):
    dropped.append("damaged")
  # A digest no longer holds once the records have changed.
  kept = [(number, data) for number, data in kept if not (changed and number == DIGEST)]
  whole = b"".join(resource(number, data) for number, data in kept)
  return Resources(whole, tuple(dict.fromkeys(dropped)), density)


def resource(number: int, data: bytes) -> bytes:
  """Serialises one resource without a name.

  >>> resource(1028, b"text")
  b'8BIM\\x04\\x04\\x00\\x00\\x00\\x00\\x00\\x04text'
  """
  padding = b"\0" * (len(data) % 2)
  return _SIGNATURE + struct.pack(">HHI", number, 0, len(data)) + data + padding


def records(iptc: bytes) -> tuple[bytes, list[str]]:
  """Removes previews from IPTC records; returns the records and the keys of dropped rows.

  >>> records(b"")
  (b'', [])
  """
  parts, at, lost = [], 0, []
  for _ in range(_MAX_PIECES):
    if at + 5 > len(iptc) or iptc[at] != 0x1C:
      break
    record, number, size = struct.unpack_from(">BBH", iptc, at + 1)
    start = at + 5
    if size & 0x8000:
      width = size & 0x7FFF
      if width > 4 or start + width > len(iptc):
        break
      size = int.from_bytes(iptc[start : start + width], "big")
      start += width
    if start + size > len(iptc):
      break
    preview = (record == 2 and 200 <= number <= 202) or record in (7, 8, 9)
    if preview or picture_marks.found(iptc[start : start + size]):
      lost.append("iptc_preview")
    else:
      parts.append(iptc[at : start + size])
    at = start + size
  if iptc[at:].strip(b"\0"):
    lost.append("damaged")
  return (b"".join(parts) if lost else iptc), list(dict.fromkeys(lost))


def _density(data: bytes) -> tuple[int, int] | None:
  """Returns (x, y) in pixels per metre; the resource stores 16.16 fixed-point dots per inch."""
  x, y = (struct.unpack_from(">I", data, place)[0] / 65536 / 0.0254 for place in (0, 8))
  return (round(x), round(y)) if 0 < x < 2**31 and 0 < y < 2**31 else None


def raw_profile(kind: str, data: bytes) -> bytes:
  """Formats a profile as PNG files conventionally store it: its length, then hexadecimal lines.

  >>> raw_profile("iptc", b"\\0\\1")
  b'\\niptc\\n       2\\n0001\\n'
  """
  digits = data.hex()
  lines = "\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
  return f"\n{kind}\n{len(data):8d}\n{lines}\n".encode()


def from_raw_profile(text: bytes) -> bytes:
  """Parses the text made by `raw_profile`. Raises ValueError if it is malformed.

  >>> from_raw_profile(raw_profile("iptc", b"\\0\\1"))
  b'\\x00\\x01'
  """
  match = _RAW_PROFILE.match(text)
  if match is None:
    raise ValueError("no raw profile")
  data = bytes.fromhex(match.group(3).decode())
  if len(data) != int(match.group(2)):
    raise ValueError("a raw profile of another length than it says")
  return data
