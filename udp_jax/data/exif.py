"""Parses untrusted EXIF blocks and TIFF directories, and writes new EXIF blocks.

A block is never copied as it is: it may hold bytes that no directory points at, such as a preview
that some tool "removed". Values that `metadata.TABLE` keeps are written one by one into a new
block, in the old byte order.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from udp_jax.data import metadata, picture_marks

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SIZES_BIG = {16: 8, 17: 8, 18: 8}
_MAX_ENTRIES = 2000
# First bytes of a block, after its prefix.
HEADERS = (b"II*\0", b"MM\0*")

_EXIF_POINTER, _GPS_POINTER, _INTEROP_POINTER = 0x8769, 0x8825, 0xA005
_ORIENTATION = 0x0112
_RESOLUTION = (282, 283, 296)
# Tags whose values are saved outside the new block.
_APART = frozenset({700, 33723, 34377, 34675})

Read = Callable[[int, int], bytes]


class Entry(NamedTuple):
  """A tag's type, number of values and value bytes."""

  type: int
  number: int
  value: bytes


class Exif(NamedTuple):
  """The parts of a block that are kept.

  Attributes:
    block: the new block without a prefix; None if nothing is left.
    orientation: EXIF orientation, 1 to 8.
    dropped: keys of `metadata.TABLE`.
    apart: values of tags that are saved elsewhere: XMP, IPTC, Photoshop, ICC.
    density: (x, y) in pixels per metre, or None.
  """

  block: bytes | None = None
  orientation: int = 1
  dropped: tuple[str, ...] = ()
  apart: dict[int, bytes] = {}
  density: tuple[int, int] | None = None


def of_block(block: bytes) -> Exif:
  """Reads an EXIF block, with or without its "Exif" prefix.

  >>> of_block(b"Exif\\0\\0nothing").block is None
  True
  """
  block = block.removeprefix(b"Exif\0\0")
  return carry(lambda start, count: block[start : start + count])


def carry(read: Read, *, pages: bool = False) -> Exif:
  """Filters the directories of a block or a TIFF file; never raises on damaged content.

  Args:
    read: (start, count) -> bytes of the block or file; fewer at its end.
    pages: whether the directories after the first are TIFF pages rather than a preview.

  >>> carry(lambda start, count: b"nothing"[start : start + count]).block is None
  True
  """
  dropped: list[str] = []
  source = _Source(read, dropped)
  try:
    first, following = source.begin()
  except (ValueError, struct.error):
    return Exif(dropped=("damaged_exif",))
  orientation = source.number(first.get(_ORIENTATION), 1)
  if not 1 <= orientation <= 8:
    orientation = 1
  exif = source.pointed(first, _EXIF_POINTER)
  position = source.pointed(first, _GPS_POINTER)
  interop = source.pointed(exif, _INTEROP_POINTER)
  if following and not pages and len(read(following, 2)) == 2:
    dropped.append("exif_preview")
  apart = {tag: first[tag].value for tag in _APART & first.keys()}
  density = source.density(first)
  kept = {}
  for name, entries in (("", first), ("exif", exif), ("interop", interop)):
    kept[name] = {tag: entry for tag, entry in entries.items() if source.keeps(tag, entry)}
  # A GPS directory that holds only its version holds no position.
  if set(position) - {0}:
    dropped.append("position")
  if orientation != 1:
    dropped.append("orientation")
  block = _write(source.order, kept[""], kept["exif"], kept["interop"])
  return Exif(block, orientation, tuple(dict.fromkeys(dropped)), apart, density)


class _Source:
  """Reads the directories of one block, any part of which may be damaged."""

  def __init__(self, read: Read, dropped: list[str]):
    self._read, self._dropped = read, dropped
    self._left, self._bytes_left = _MAX_ENTRIES, metadata.MAX_BYTES
    self._seen: set[int] = set()
    self.order, self._big = "<", False

  def begin(self) -> tuple[dict[int, Entry], int]:
    """Returns the first directory and the next one's offset; ValueError if not a TIFF block."""
    head = self._read(0, 16)
    if head[:2] not in (b"II", b"MM"):
      raise ValueError("no byte order")
    self.order = "<" if head[:2] == b"II" else ">"
    (magic,) = struct.unpack(f"{self.order}H", head[2:4])
    if magic not in (42, 43):
      raise ValueError("no TIFF header")
    self._big = magic == 43
    form, place = ("Q", head[8:16]) if self._big else ("I", head[4:8])
    (start,) = struct.unpack(f"{self.order}{form}", place)
    return self.directory(start)

  def directory(self, start: int) -> tuple[dict[int, Entry], int]:
    """Returns the directory at `start` and the next one's offset; ValueError on a loop."""
    if start in self._seen:
      raise ValueError("a directory in a loop")
    self._seen.add(start)
    width, step, form = (8, 20, "Q") if self._big else (2, 12, "I")
    head = self._read(start, width)
    if len(head) < width:
      raise ValueError("a directory beyond the end")
    (count,) = struct.unpack(f"{self.order}{'Q' if self._big else 'H'}", head)
    if count > self._left:
      self._dropped.append("damaged_exif")
      count = self._left
    self._left -= count
    table = self._read(start + width, count * step)
    entries: dict[int, Entry] = {}
    for at in range(0, len(table) - step + 1, step):
      entry = self._entry(table[at : at + step])
      if entry is not None:
        entries.setdefault(*entry)
    if len(table) < count * step:
      self._dropped.append("damaged_exif")
      return entries, 0
    place = self._read(start + width + count * step, struct.calcsize(f"={form}"))
    if len(place) < struct.calcsize(f"={form}"):
      return entries, 0
    return entries, struct.unpack(f"{self.order}{form}", place)[0]

  def _entry(self, raw: bytes) -> tuple[int, Entry] | None:
    form = "HHQ" if self._big else "HHI"
    tag, kind, count = struct.unpack_from(f"{self.order}{form}", raw)
    inline = raw[12:] if self._big else raw[8:]
    size = (_SIZES | _SIZES_BIG if self._big else _SIZES).get(kind)
    if size is None:
      self._dropped.append("damaged_exif")
      return None
    total = size * count
    if metadata.BY_TAG.get(tag) == "layout":
      return None
    if total <= len(inline):
      return tag, Entry(kind, count, inline[:total])
    (place,) = struct.unpack(f"{self.order}{'Q' if self._big else 'I'}", inline)
    if total > self._bytes_left:
      self._dropped.append("oversized")
      return None
    value = self._read(place, total)
    if len(value) < total:
      self._dropped.append("damaged_exif")
      return None
    self._bytes_left -= total
    return tag, Entry(kind, count, value)

  def number(self, entry: Entry | None, default: int) -> int:
    """Returns the first whole number of an entry."""
    if entry is None or entry.number < 1:
      return default
    form = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}.get(entry.type)
    return default if form is None else struct.unpack_from(f"{self.order}{form}", entry.value)[0]

  def pointed(self, entries: dict[int, Entry], tag: int) -> dict[int, Entry]:
    """Returns the directory that an entry points at; {} if it is missing or damaged."""
    start = self.number(entries.pop(tag, None), 0)
    if not start:
      return {}
    try:
      return self.directory(start)[0]
    except (ValueError, struct.error):
      self._dropped.append("damaged_exif")
      return {}

  def density(self, entries: dict[int, Entry]) -> tuple[int, int] | None:
    """Returns the resolution (x, y) in pixels per metre, or None."""
    unit = self.number(entries.get(_RESOLUTION[2]), 2)
    metre = {2: 1 / 0.0254, 3: 100.0}.get(unit)
    values = []
    for tag in _RESOLUTION[:2]:
      entry = entries.get(tag)
      if metre is None or entry is None or entry.type != 5 or entry.number < 1:
        return None
      above, below = struct.unpack_from(f"{self.order}II", entry.value)
      value = round(above / below * metre) if below else 0
      if not 0 < value < 2**31:
        return None
      values.append(value)
    return values[0], values[1]

  def keeps(self, tag: int, entry: Entry) -> bool:
    """Returns whether an entry goes into the new block; if not, records its table row."""
    key = metadata.BY_TAG.get(tag)
    if key is None:
      if picture_marks.found(entry.value):
        self._dropped.append("embedded")
        return False
      return entry.type in _SIZES
    # Values that are saved elsewhere are not lost.
    if metadata.TABLE[key].fate == metadata.DROPPED:
      self._dropped.append(key)
    return False


def _write(
  order: str, first: dict[int, Entry], exif: dict[int, Entry], interop: dict[int, Entry]
) -> bytes | None:
  """Writes a block of three directories; None if all are empty."""
  if not first and not exif and not interop:
    return None

  def pointing(entries: dict[int, Entry], tag: int, there: bool, place: int) -> dict[int, Entry]:
    pointer = {tag: Entry(4, 1, struct.pack(f"{order}I", place))} if there else {}
    return entries | pointer

  start = 8
  with_exif = bool(exif or interop)
  exif_start = start + len(_directory(order, pointing(first, _EXIF_POINTER, with_exif, 0), 0))
  inner = _directory(order, pointing(exif, _INTEROP_POINTER, bool(interop), 0), 0)
  interop_start = exif_start + len(inner)
  parts = [(b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)]
  parts.append(_directory(order, pointing(first, _EXIF_POINTER, with_exif, exif_start), start))
  if with_exif:
    exif = pointing(exif, _INTEROP_POINTER, bool(interop), interop_start)
    parts.append(_directory(order, exif, exif_start))
  if interop:
    parts.append(_directory(order, interop, interop_start))
  return b"".join(parts)


def _directory(order: str, entries: dict[int, Entry], start: int) -> bytes:
  """Serialises one directory at offset `start`, followed by its values, to an even length."""
  table = struct.pack(f"{order}H", len(entries))
  data = b""
  place = start + 2 + 12 * len(entries) + 4
  for tag in sorted(entries):
    kind, count, value = entries[tag]
    table += struct.pack(f"{order}HHI", tag, kind, count)
    if len(value) <= 4:
      table += value.ljust(4, b"\0")
    else:
      table += struct.pack(f"{order}I", place + len(data))
      data += value + b"\0" * (len(value) % 2)
  return table + b"\0\0\0\0" + data
