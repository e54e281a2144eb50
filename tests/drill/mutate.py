"""Structure-aware damage: files taken apart into chunks, segments or fields, and rebuilt wrong.

A mutator is `function(generator, content) -> content`; all of them draw from the generator they are
given, so that a seed makes the same file everywhere. What a rebuilt file gets right (lengths,
checksums) is on purpose: damage behind a wrong checksum is never reached.
"""

from __future__ import annotations

import functools
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Mutator = Callable[[random.Random, bytes], bytes]

_INTERESTING = (
  *(0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 127, 128, 129, 254, 255, 256, 257),
  *(0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x10000, 0xFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF),
)
# Inflated: enough to show in memory, small enough to be made in a moment.
_BOMB_BYTES = 300 << 20


def number(generator: random.Random, size: int, old: int = 0) -> int:
  """An unsigned number of `size` bytes that readers trip over: limits, neighbours, anything."""
  choice = generator.randrange(4)
  if choice == 0:
    value = old + generator.choice((-2, -1, 1, 2))
  elif choice == 1:
    value = generator.choice((old * 2, old // 2, old << 8, old ^ (1 << generator.randrange(8))))
  else:
    value = generator.choice((generator.choice(_INTERESTING), generator.getrandbits(8 * size)))
  return value % (1 << (8 * size))


def put(content: bytes, at: int, size: int, value: int, order: str = "big") -> bytes:
  """`content` with an unsigned number written over the bytes from `at` on."""
  if at < 0 or at + size > len(content):
    return content
  return content[:at] + value.to_bytes(size, order) + content[at + size :]  # type: ignore[arg-type]


def number_at(
  generator: random.Random, content: bytes, at: int, size: int, order: str = "big"
) -> bytes:
  """`content` with a bad number in place of the one at `at`."""
  old = int.from_bytes(content[at : at + size], order)  # type: ignore[arg-type]
  return put(content, at, size, number(generator, size, old), order)


@functools.cache
def bomb() -> bytes:
  """A zlib stream of some hundred kilobytes that inflates to 300 MiB."""
  packer = zlib.compressobj(9)
  block = bytes(1 << 20)
  return b"".join(packer.compress(block) for _ in range(_BOMB_BYTES >> 20)) + packer.flush()


# Bytes that mean nothing in particular.


def flip_bits(generator: random.Random, content: bytes) -> bytes:
  """A few flipped bits anywhere."""
  if not content:
    return content
  changed = bytearray(content)
  for _ in range(generator.choice((1, 1, 2, 4, 16))):
    changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
  return bytes(changed)


def truncate(generator: random.Random, content: bytes) -> bytes:
  """The beginning of the content."""
  return content[: generator.randrange(len(content) + 1)]


def overwrite(generator: random.Random, content: bytes) -> bytes:
  """A run of zeros, ones or noise over a part of the content."""
  if not content:
    return content
  start = generator.randrange(len(content))
  length = min(generator.choice((1, 2, 4, 8, 64, 512)), len(content) - start)
  kind = generator.randrange(3)
  run = generator.randbytes(length) if kind == 2 else (b"\0", b"\xff")[kind] * length
  return content[:start] + run + content[start + length :]


def insert(generator: random.Random, content: bytes) -> bytes:
  """Noise, or a piece of the content itself, pushed into it."""
  at = generator.randrange(len(content) + 1)
  start = generator.randrange(len(content) + 1)
  piece = content[start : start + generator.choice((1, 4, 64, 1024))]
  piece = piece if generator.random() < 0.5 else generator.randbytes(generator.choice((1, 8, 256)))
  return content[:at] + piece + content[at:]


def append(generator: random.Random, content: bytes) -> bytes:
  """Something behind the end: noise, the file again, or a megabyte of zeros."""
  return content + generator.choice((generator.randbytes(100), content, bytes(1 << 20)))


ANY = (flip_bits, flip_bits, truncate, overwrite, insert, append)


def mutate(generator: random.Random, content: bytes, mutators: Sequence[Mutator]) -> bytes:
  """One to three mutations, the last of them sometimes one that knows nothing of the format."""
  for _ in range(generator.choice((1, 1, 1, 2, 3))):
    content = generator.choice(mutators)(generator, content)
  if generator.random() < 0.15:
    content = generator.choice(ANY)(generator, content)
  return content


# Lists of chunks or segments.


class Part(NamedTuple):
  """A chunk. `length` and `checksum` are what the file says of it; None for the truth."""

  name: bytes
  body: bytes
  length: int | None = None
  checksum: int | None = None


def _parts_mutators(
  split: Callable[[bytes], list[Part]],
  join: Callable[[list[Part]], bytes],
  length_size: int,
  names: Sequence[bytes],
) -> list[Mutator]:
  """Damage that every format of chunks has in common."""

  def on_parts(change: Callable[[random.Random, list[Part], int], list[Part]]) -> Mutator:
    def mutator(generator: random.Random, content: bytes) -> bytes:
      parts = split(content)
      if not parts:
        return flip_bits(generator, content)
      return join(change(generator, parts, generator.randrange(len(parts))))

    mutator.__name__ = change.__name__
    return mutator

  def drop(generator: random.Random, parts: list[Part], at: int) -> list[Part]:
    return parts[:at] + parts[at + 1 :]

  def repeat(generator: random.Random, parts: list[Part], at: int) -> list[Part]:
    times = generator.choice((1, 1, 2, 50, 1000 if len(parts[at].body) < 4096 else 5))
    return parts[:at] + [parts[at]] * times + parts[at:]

  def move(generator: random.Random, parts: list[Part], at: int) -> list[Part]:
    rest = parts[:at] + parts[at + 1 :]
    to = generator.randrange(len(parts))
    return [*rest[:to], parts[at], *rest[to:]]

  def wrong_length(generator: random.Random, parts: list[Part], at: int) -> list[Part]:
    length = number(generator, length_size, len(parts[at].body))
    return [*parts[:at], parts[at]._replace(length=length), *parts[at + 1 :]]

  def wrong_checksum(generator: random.Random, parts: list[Part], at: int) -> list[Part]:
    part = parts[at]._replace(checksum=generator.getrandbits(32))
    return [*parts[:at], part, *parts[at + 1 :]]

  def rename(generator: random.Random, parts: list[Part], at: int) -> list[Part]:
    other = generator.choice((*names, *(part.name for part in parts)))
    return [*parts[:at], parts[at]._replace(name=other), *parts[at + 1 :]]

  def damage_body(generator: random.Random, parts: list[Part], at: int) -> list[Part]:
    body = generator.choice((flip_bits, truncate, overwrite, insert))(generator, parts[at].body)
    return [*parts[:at], parts[at]._replace(body=body), *parts[at + 1 :]]

  def bad_number(generator: random.Random, parts: list[Part], at: int) -> list[Part]:
    body, size = parts[at].body, generator.choice((1, 2, 4))
    if len(body) >= size:
      where = generator.randrange(min(len(body) - size + 1, 64))
      body = number_at(generator, body, where, size, generator.choice(("big", "little")))
    return [*parts[:at], parts[at]._replace(body=body), *parts[at + 1 :]]

  def oversize(generator: random.Random, parts: list[Part], at: int) -> list[Part]:
    size = min(generator.choice((1 << 16, 1 << 20)), (1 << (8 * length_size)) - 8)
    part = Part(generator.choice((*names, parts[at].name)), bytes(size))
    return [*parts[:at], part, *parts[at:]]

  changes = (drop, repeat, move, wrong_length, wrong_checksum, rename, oversize)
  return [on_parts(change) for change in (*changes, damage_body, damage_body, bad_number)]


# PNG and APNG.

PNG_HEAD = b"\x89PNG\r\n\x1a\n"
_PNG_NAMES = tuple(
  b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP tEXt zTXt iTXt pHYs tIME eXIf bKGD hIST sBIT sPLT"
  b" acTL fcTL fdAT cICP mDCV caBX vpAg".split()
)


def png_split(content: bytes) -> list[Part]:
  """The chunks of a PNG file; what follows a broken one is left out."""
  parts, at = [], len(PNG_HEAD)
  while at + 12 <= len(content):
    length = int.from_bytes(content[at : at + 4], "big")
    if at + 12 + length > len(content):
      break
    parts.append(Part(content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
    at += 12 + length
  return parts


def png_join(parts: Sequence[Part]) -> bytes:
  """A PNG file of chunks, right where they say nothing else."""
  made = [PNG_HEAD]
  for part in parts:
    length = len(part.body) if part.length is None else part.length
    checksum = zlib.crc32(part.name + part.body) if part.checksum is None else part.checksum
    made.append(length.to_bytes(4, "big") + part.name + part.body + checksum.to_bytes(4, "big"))
  return b"".join(made)


def _png_header(generator: random.Random, content: bytes) -> bytes:
  """Sizes, depth, colour type and interlacing that do not fit the rest."""
  parts = png_split(content)
  for at, part in enumerate(parts):
    if part.name == b"IHDR":
      where, size = generator.choice(((0, 4), (4, 4), (8, 1), (9, 1), (10, 1), (11, 1), (12, 1)))
      parts[at] = part._replace(body=number_at(generator, part.body, where, size))
  return png_join(parts)


def _png_huge(generator: random.Random, content: bytes) -> bytes:
  """More pixels than there are: just under, at and over every limit."""
  parts = png_split(content)
  sizes = ((10_000, 10_000), (9_999, 10_000), (65_535, 1_500), (1, 99_999_999), (13_000, 13_000))
  width, height = generator.choice((*sizes, (0x7FFFFFFF, 0x7FFFFFFF), (50_000_000, 2)))
  for at, part in enumerate(parts):
    if part.name == b"IHDR":
      body = struct.pack(">II", width, height) + part.body[8:]
      if generator.random() < 0.5:
        body = body[:8] + bytes([generator.choice((1, 8, 16)), generator.choice((0, 2, 3, 4, 6))])
        body += part.body[10:]
      parts[at] = part._replace(body=body)
    elif part.name == b"IDAT" and generator.random() < 0.5:
      parts[at] = part._replace(body=bomb())
  return png_join(parts)


def _png_bomb(generator: random.Random, content: bytes) -> bytes:
  """A compressed text, profile or picture that inflates to hundreds of megabytes."""
  parts = png_split(content)
  part = generator.choice(
    (
      Part(b"zTXt", b"Comment\0\0" + bomb()),
      Part(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb()),
      Part(b"iCCP", b"profile\0\0" + bomb()),
      Part(b"IDAT", bomb()),
      Part(b"zTXt", b"Raw profile type exif\0\0" + bomb()),
    )
  )
  at = generator.randrange(1, len(parts) + 1) if parts else 0
  return png_join([*parts[:at], part, *parts[at:]])


def _png_scanlines(generator: random.Random, content: bytes) -> bytes:
  """Damage inside of the compressed pixels, packed again so that it is reached."""
  parts = png_split(content)
  packed = b"".join(part.body for part in parts if part.name == b"IDAT")
  try:
    lines = zlib.decompress(packed)
  except zlib.error:
    return flip_bits(generator, content)
  lines = generator.choice((flip_bits, truncate, overwrite, insert))(generator, lines)
  first = next((i for i, part in enumerate(parts) if part.name == b"IDAT"), len(parts))
  rest = [part for part in parts if part.name != b"IDAT"]
  body, size = zlib.compress(lines), generator.choice((1, 7, 1 << 20))
  pieces = [Part(b"IDAT", body[i : i + size]) for i in range(0, len(body), size)]
  return png_join([*rest[:first], *pieces, *rest[first:]])


def _png_exif(generator: random.Random, content: bytes) -> bytes:
  """Damage inside of the EXIF block."""
  parts = [
    part._replace(body=tiff_fields(generator, part.body)) if part.name == b"eXIf" else part
    for part in png_split(content)
  ]
  return png_join(parts)


def _png_frames(generator: random.Random, content: bytes) -> bytes:
  """Frames out of order, outside of the canvas, too many or none."""
  parts = png_split(content)
  frames = [i for i, part in enumerate(parts) if part.name in (b"acTL", b"fcTL", b"fdAT")]
  if not frames:
    return _png_header(generator, content)
  at = generator.choice(frames)
  body = parts[at].body
  where = 4 * generator.randrange(max(1, min(len(body), 24) // 4))
  parts[at] = parts[at]._replace(body=number_at(generator, body, where, 4))
  return png_join(parts)


_PNG_COMMON = _parts_mutators(png_split, png_join, 4, _PNG_NAMES)
PNG = [*_PNG_COMMON, _png_header, _png_huge, _png_bomb, _png_scanlines, _png_scanlines, _png_exif]
APNG = [*_PNG_COMMON, _png_frames, _png_frames, _png_frames, _png_header, _png_bomb]

# JPEG and MPO. A segment's name is its marker; pixels are a part without a name.


def jpeg_split(content: bytes) -> list[Part]:
  """The segments of a JPEG file in order, pixels between them."""
  parts, at = [], 0
  while at < len(content):
    end = at
    while end < len(content) and not (
      content[end] == 0xFF and end + 1 < len(content) and content[end + 1] not in (0, 0xFF)
    ):
      end += 1
    if end > at:
      parts.append(Part(b"", content[at:end]))
    marker = content[end : end + 2]
    at = end + 2
    if len(marker) < 2:
      break
    if marker[1] in (0x01, *range(0xD0, 0xDA)):
      parts.append(Part(marker, b""))
      continue
    length = int.from_bytes(content[at : at + 2], "big")
    parts.append(Part(marker, content[at + 2 : at + max(length, 2)]))
    at += max(length, 2)
  return parts


def jpeg_join(parts: Sequence[Part]) -> bytes:
  """A JPEG file of segments."""
  made = []
  for part in parts:
    bare = len(part.name) < 2 or part.name[1] in (0x01, *range(0xD0, 0xDA))
    if bare and not part.body:
      made.append(part.name)
    elif not part.name:
      made.append(part.body)
    else:
      length = len(part.body) + 2 if part.length is None else part.length
      made.append(part.name + (length & 0xFFFF).to_bytes(2, "big") + part.body)
  return b"".join(made)


def _jpeg_segment(*markers: int) -> Callable[[Callable[[random.Random, bytes], bytes]], Mutator]:
  """Applies a mutator to the body of one segment of these markers."""

  def wrap(change: Callable[[random.Random, bytes], bytes]) -> Mutator:
    def mutator(generator: random.Random, content: bytes) -> bytes:
      parts = jpeg_split(content)
      found = [i for i, part in enumerate(parts) if part.name and part.name[1] in markers]
      if not found:
        return flip_bits(generator, content)
      at = generator.choice(found)
      parts[at] = parts[at]._replace(body=change(generator, parts[at].body))
      return jpeg_join(parts)

    mutator.__name__ = change.__name__
    return mutator

  return wrap


@_jpeg_segment(0xC0, 0xC1, 0xC2)
def _jpeg_frame(generator: random.Random, body: bytes) -> bytes:
  """Precision, size, number of components, sampling factors."""
  at, size = generator.choice(((0, 1), (1, 2), (3, 2), (5, 1), (7, 1), (8, 1), (10, 1), (13, 1)))
  return number_at(generator, body, at, size)


@_jpeg_segment(0xC0, 0xC1, 0xC2)
def _jpeg_huge(generator: random.Random, body: bytes) -> bytes:
  sizes = ((10_000, 10_000), (65_500, 1_500), (65_500, 65_500), (1, 65_500))
  height, width = generator.choice(sizes)
  return body[:1] + struct.pack(">HH", height, width) + body[5:]


@_jpeg_segment(0xC4, 0xDB, 0xDA, 0xDD)
def _jpeg_tables(generator: random.Random, body: bytes) -> bytes:
  return generator.choice((flip_bits, overwrite, truncate))(generator, body)


@_jpeg_segment(0xE1)
def _jpeg_exif(generator: random.Random, body: bytes) -> bytes:
  if not body.startswith(b"Exif\0\0"):
    return generator.choice((flip_bits, truncate, insert))(generator, body)
  return (body[:6] + tiff_fields(generator, body[6:]))[:65_500]


@_jpeg_segment(0xE2, 0xED, 0xEE)
def _jpeg_apps(generator: random.Random, body: bytes) -> bytes:
  """Profiles in pieces that are not there, Photoshop blocks whose lengths lie, MPO's directory."""
  if body.startswith(b"MPF\0"):
    return body[:4] + tiff_fields(generator, body[4:])
  at = generator.randrange(max(1, min(len(body), 48)))
  return number_at(generator, body, at, generator.choice((1, 2, 4)))


def _jpeg_scans(generator: random.Random, content: bytes) -> bytes:
  """A scan repeated hundreds of times, each of which costs a pass over the picture."""
  parts = jpeg_split(content)
  scans = [i for i, part in enumerate(parts) if part.name == b"\xff\xda"]
  if not scans:
    return flip_bits(generator, content)
  at = generator.choice(scans)
  pair = parts[at : at + 2]
  times = generator.choice((2, 100, min(20_000, (2 << 20) // max(1, len(jpeg_join(pair))))))
  return jpeg_join([*parts[:at], *pair * times, *parts[at:]])


def _jpeg_pixels(generator: random.Random, content: bytes) -> bytes:
  """Damage inside of the entropy-coded pixels."""
  parts = jpeg_split(content)
  pixels = [i for i, part in enumerate(parts) if not part.name and part.body]
  if not pixels:
    return flip_bits(generator, content)
  at = generator.choice(pixels)
  change = generator.choice((flip_bits, truncate, overwrite, insert))
  parts[at] = parts[at]._replace(body=change(generator, parts[at].body))
  return jpeg_join(parts)


_JPEG_NAMES = tuple(bytes([0xFF, m]) for m in (*range(0xC0, 0xD0), *range(0xD8, 0xF0), 0xFE))
JPEG = [
  *_parts_mutators(jpeg_split, jpeg_join, 2, _JPEG_NAMES),
  *(_jpeg_frame, _jpeg_huge, _jpeg_tables, _jpeg_exif, _jpeg_exif, _jpeg_apps, _jpeg_apps),
  *(_jpeg_scans, _jpeg_pixels, _jpeg_pixels),
]

# WebP: RIFF chunks.

_RIFF_NAMES = tuple(b"VP8 |VP8L|VP8X|ALPH|ANIM|ANMF|ICCP|EXIF|XMP |JUNK".split(b"|"))


def riff_split(content: bytes) -> list[Part]:
  """The chunks of a RIFF file."""
  parts, at = [], 12
  while at + 8 <= len(content):
    length = int.from_bytes(content[at + 4 : at + 8], "little")
    parts.append(Part(content[at : at + 4], content[at + 8 : at + 8 + length]))
    at += 8 + length + length % 2
  return parts


def riff_join(parts: Sequence[Part]) -> bytes:
  """A WebP file of chunks."""
  made = []
  for part in parts:
    length = len(part.body) if part.length is None else part.length
    made.append(part.name + length.to_bytes(4, "little") + part.body + b"\0" * (len(part.body) % 2))
  body = b"WEBP" + b"".join(made)
  return b"RIFF" + len(body).to_bytes(4, "little") + body


def _webp_header(generator: random.Random, content: bytes) -> bytes:
  """Flags and sizes in the first bytes of a chunk; the RIFF's own length."""
  if generator.random() < 0.2:
    return number_at(generator, content, 4, 4, "little")
  parts = riff_split(content)
  if not parts:
    return flip_bits(generator, content)
  at = generator.randrange(len(parts))
  body = parts[at].body
  if parts[at].name == b"EXIF":
    body = tiff_fields(generator, body)
  else:
    body = number_at(generator, body, generator.randrange(min(len(body), 24) or 1), 2, "little")
  parts[at] = parts[at]._replace(body=body)
  return riff_join(parts)


WEBP = [
  *_parts_mutators(riff_split, riff_join, 4, _RIFF_NAMES),
  *(_webp_header, _webp_header, _webp_header, _webp_header),
]

# BMP: a header of fields, a palette, pixels.

_BMP_FIELDS = ((2, 4), (10, 4), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2), (30, 4), (34, 4))
_BMP_FIELDS += ((38, 4), (42, 4), (46, 4), (50, 4), (54, 4), (58, 4), (62, 4), (66, 4))


def _bmp_field(generator: random.Random, content: bytes) -> bytes:
  at, size = generator.choice(_BMP_FIELDS)
  return number_at(generator, content, at, size, "little")


def _bmp_kind(generator: random.Random, content: bytes) -> bytes:
  """Another depth and compression: run lengths, masks, embedded JPEG and PNG."""
  content = put(content, 28, 2, generator.choice((1, 4, 8, 16, 24, 32)), "little")
  return put(content, 30, 4, generator.choice((0, 1, 2, 3, 4, 5, 6, 11)), "little")


def _bmp_huge(generator: random.Random, content: bytes) -> bytes:
  sizes = ((10_000, 10_000), (99_999_999, 1), (0x80000000, 1), (65_536, 65_536), (0, 5))
  width, height = generator.choice(sizes)
  return put(put(content, 18, 4, width, "little"), 22, 4, height, "little")


BMP = [_bmp_field, _bmp_field, _bmp_field, _bmp_kind, _bmp_huge, *ANY]

# TIFF, and with it EXIF and MPO's directory: lists of fields at offsets.

_TIFF_TAGS = (254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 282, 284, 317, 320, 322)
_TIFF_TAGS += (323, 324, 325, 330, 338, 339, 347, 513, 514, 530, 700, 33723, 34377, 34665, 34675)
_TIFF_TAGS += (34853, 40965, 45056, 45057, 45058)
_COMPRESSIONS = (1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32946, 34676, 34677, 34712, 34925, 50000)


def _tiff_fields_of(content: bytes) -> tuple[str, list[tuple[int, int]], list[int]]:
  """Byte order, [(place of a field, its tag)], and the places of the links to the next list."""
  order = "big" if content[:2] == b"MM" else "little"

  def read(at: int, size: int) -> int:
    return int.from_bytes(content[at : at + size], order)  # type: ignore[arg-type]

  fields, links, pending, seen = [], [4], [read(4, 4)], set[int]()
  while pending:
    at = pending.pop()
    if at in seen or not 8 <= at < len(content) - 2:
      continue
    seen.add(at)
    count = read(at, 2)
    for i in range(min(count, 100)):
      place = at + 2 + 12 * i
      if place + 12 > len(content):
        break
      tag = read(place, 2)
      fields.append((place, tag))
      if tag in (330, 34665, 34853, 40965):
        pending.append(read(place + 8, 4))
    link = at + 2 + 12 * count
    if link + 4 <= len(content):
      links.append(link)
      pending.append(read(link, 4))
  return order, fields, links


def tiff_fields(generator: random.Random, content: bytes) -> bytes:
  """A field with another tag, type, count or value; a list that leads into itself or nowhere."""
  order, fields, links = _tiff_fields_of(content)
  if not fields:
    return flip_bits(generator, content)
  for _ in range(generator.choice((1, 1, 2, 3))):
    place, _ = generator.choice(fields)
    choice = generator.randrange(7)
    if choice == 0:
      content = put(content, place, 2, generator.choice(_TIFF_TAGS), order)
    elif choice == 1:
      content = put(content, place + 2, 2, generator.randrange(20), order)
    elif choice == 2:
      content = number_at(generator, content, place + 4, 4, order)
    elif choice in (3, 4):
      content = number_at(generator, content, place + 8, 4, order)
    elif choice == 5:
      link, to = generator.choice(links), generator.choice(links)
      target = generator.choice((max(0, to - 2), 8, len(content) - 1, generator.getrandbits(32)))
      content = put(content, link, 4, target, order)
    else:
      content = number_at(generator, content, min(place for place, _ in fields) - 2, 2, order)
  return content


def _tiff_value(generator: random.Random, content: bytes) -> bytes:
  """Sizes, depths and compressions that do not fit the rest, in fields that hold them."""
  order, fields, _ = _tiff_fields_of(content)
  at = {tag: place for place, tag in fields}
  choices: list[tuple[int, Sequence[int]]] = [
    (256, (0, 1, 10_000, 65_535, 99_999_999, 0xFFFFFFFF)),
    (257, (0, 1, 10_000, 65_535, 99_999_999, 0xFFFFFFFF)),
    (258, (0, 1, 2, 4, 8, 12, 16, 32, 64)),
    (259, _COMPRESSIONS),
    (262, (0, 1, 2, 3, 4, 5, 6, 8, 9, 32803)),
    (274, (0, 1, 3, 6, 8, 9)),
    (277, (0, 1, 2, 3, 4, 5, 255, 65_535)),
    (278, (0, 1, 7, 0xFFFFFFFF)),
    (279, (0, 1, 0x7FFFFFFF, 0xFFFFFFFF)),
    (284, (0, 1, 2, 3)),
    (317, (1, 2, 3)),
    (322, (0, 1, 16, 0xFFFFFFFF)),
    (339, (1, 2, 3, 4)),
  ]
  for tag, values in generator.sample(choices, generator.choice((1, 1, 2, 4))):
    if tag in at:
      value = generator.choice(values)
      is_short = int.from_bytes(content[at[tag] + 2 : at[tag] + 4], order) == 3  # type: ignore[arg-type]
      size = 2 if is_short and value < 65_536 else 4
      if size == 4 and is_short:
        content = put(content, at[tag] + 2, 2, 4, order)
      content = put(content, at[tag] + 8, size, value, order)
  return content


def _tiff_header(generator: random.Random, content: bytes) -> bytes:
  """The other byte order, another version, a first list somewhere else."""
  choice = generator.randrange(3)
  if choice == 0:
    return {b"II": b"MM", b"MM": b"II"}.get(content[:2], b"II") + content[2:]
  return number_at(generator, content, 2 if choice == 1 else 4, 2 if choice == 1 else 4, "little")


TIFF = [tiff_fields, tiff_fields, tiff_fields, _tiff_value, _tiff_value, _tiff_value]
TIFF += [_tiff_header, *ANY]

# GIF: blocks.


def gif_split(content: bytes) -> list[Part]:
  """Header with palette, extensions, images, end."""
  end = 13 + (3 << ((content[10] & 7) + 1) if len(content) > 10 and content[10] & 0x80 else 0)
  parts, at = [Part(b"", content[:end])], end

  def chain(at: int) -> int:
    while at < len(content) and content[at]:
      at += 1 + content[at]
    return at + 1

  while at < len(content):
    if content[at] == 0x21:
      end = chain(at + 2)
    elif content[at] == 0x2C and at + 10 <= len(content):
      flags = content[at + 9]
      end = chain(at + 11 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0))
    else:
      end = at + 1
    parts.append(Part(b"", content[at:end]))
    at = end
  return parts


def gif_join(parts: Sequence[Part]) -> bytes:
  """A GIF file of blocks."""
  return b"".join(part.body for part in parts)


def _gif_image(generator: random.Random, content: bytes) -> bytes:
  """Place, size, flags and code size of a frame; the size of the screen."""
  parts = gif_split(content)
  frames = [i for i, part in enumerate(parts) if part.body[:1] == b"\x2c"]
  if not frames or generator.random() < 0.25:
    at, size = generator.choice(((6, 2), (8, 2), (10, 1), (11, 1)))
    return number_at(generator, content, at, size, "little")
  i = generator.choice(frames)
  at, size = generator.choice(((1, 2), (3, 2), (5, 2), (7, 2), (9, 1), (10, 1), (11, 1)))
  parts[i] = parts[i]._replace(body=number_at(generator, parts[i].body, at, size, "little"))
  return gif_join(parts)


GIF = [*_parts_mutators(gif_split, gif_join, 1, (b"",)), _gif_image, _gif_image, _gif_image]

# JSON: trees.

_VALUES = (
  *(
    None,
    True,
    False,
    0,
    -1,
    1e308,
    2**63,
    10**400,
    float("nan"),
    float("inf"),
    "",
    "\0",
    "\ud800",
  ),
  *("../up.png", "/etc/passwd", "a" * 5000, ".hidden", "x\ny", "C:\\x", [], {}, [[]], {"a": None}),
)


def _places(value: Any, path: tuple = ()) -> list[tuple]:
  inner = []
  if isinstance(value, dict):
    inner = [place for key, item in value.items() for place in _places(item, (*path, key))]
  elif isinstance(value, list):
    inner = [place for key, item in enumerate(value) for place in _places(item, (*path, key))]
  return [path, *inner]


def tree(generator: random.Random, value: Any) -> Any:
  """A JSON value with a part dropped, doubled or replaced by something of another kind."""
  path = generator.choice(_places(value))
  if not path:
    return generator.choice((*_VALUES, [value], {"a": value}))
  holder = value
  for key in path[:-1]:
    holder = holder[key]
  choice, key = generator.randrange(4), path[-1]
  if choice == 0:
    del holder[key]
  elif choice == 1 and isinstance(holder, list):
    holder.append(holder[key])
  elif choice == 2 and isinstance(holder, dict):
    holder[str(generator.choice(_VALUES))[:20]] = holder.pop(key)
  else:
    holder[key] = generator.choice(_VALUES)
  return value


def _json_tree(generator: random.Random, content: bytes) -> bytes:
  """One JSON value, or one a line."""
  try:
    text = content.decode()
  except UnicodeDecodeError:
    return flip_bits(generator, content)
  lines = text.split("\n") if content.count(b"\n{") else [text]
  at = generator.randrange(len(lines))
  try:
    lines[at] = json.dumps(tree(generator, json.loads(lines[at])))
  except (ValueError, RecursionError):
    return flip_bits(generator, content)
  return "\n".join(lines).encode()


def _json_nested(generator: random.Random, content: bytes) -> bytes:
  """Lists in lists, deeper than a reader that calls itself can go."""
  depth = generator.choice((500, 5_000, 200_000))
  opening, closing = generator.choice(((b"[", b"]"), (b'{"a":', b"}")))
  deep = opening * depth + b"0" + closing * depth
  at = content.find(b":", generator.randrange(len(content) or 1)) + 1
  return deep if at == 0 else content[:at] + deep + content[at:]


def _text_coding(generator: random.Random, content: bytes) -> bytes:
  """Marks of byte order, other encodings, bytes that are no text, other ends of lines."""
  text = content.decode("utf-8", errors="replace")
  choice = generator.randrange(7)
  if choice == 0:
    return b"\xef\xbb\xbf" + content
  if choice == 1:
    return text.encode(generator.choice(("utf-16", "utf-32", "utf-16-be")))
  if choice == 2:
    return content.replace(b"\n", generator.choice((b"\r\n", b"\r", b"\n\n", b"\xe2\x80\xa8")))
  at = generator.randrange(len(content) + 1)
  odd = (b"\xff\xfe", b"\0", b"\xed\xa0\x80", b"\x1b[2J", b"9" * 10_000, b'"', b"\\ud800")
  return content[:at] + generator.choice(odd) + content[at:]


JSON = [_json_tree, _json_tree, _json_tree, _json_tree, _json_nested, _text_coding, *ANY]
TEXT = [_text_coding, _text_coding, _text_coding, *ANY]

# safetensors: the length of a JSON head, the head, the data.


def _tensors_head(generator: random.Random, content: bytes) -> bytes:
  """A head that parses and lies: of types, shapes and places."""
  length = int.from_bytes(content[:8], "little")
  try:
    head = json.loads(content[8 : 8 + length])
  except (ValueError, RecursionError):
    return flip_bits(generator, content)
  if not isinstance(head, dict):
    return flip_bits(generator, content)
  names = [name for name in head if isinstance(head[name], dict) and "shape" in head[name]]
  choice = generator.randrange(5)
  if names and choice < 4:
    entry = head[generator.choice(names)]
    if choice == 0:
      entry["shape"] = generator.choice(([], [0], [1 << 62, 4], [-1], [1 << 31] * 3, ["3"], None))
    elif choice == 1:
      entry["data_offsets"] = generator.choice(([0, 0], [8, 0], [0, 1 << 62], [-4, 4], [0], None))
    elif choice == 2:
      entry["dtype"] = generator.choice(("F64", "F8_E4M3", "BF16", "BOOL", "I64", "X", "", 3))
    else:
      head[generator.choice(("", "a\0b", "__metadata__", "x" * 70_000))] = dict(entry)
  else:
    head = tree(generator, head)
  packed = json.dumps(head).encode()
  return len(packed).to_bytes(8, "little") + packed + content[8 + length :]


def _tensors_length(generator: random.Random, content: bytes) -> bytes:
  return number_at(generator, content, 0, 8, "little")


def _tensors_nested(generator: random.Random, content: bytes) -> bytes:
  length = int.from_bytes(content[:8], "little")
  head = _json_nested(generator, content[8 : 8 + length])
  return len(head).to_bytes(8, "little") + head + content[8 + length :]


SAFETENSORS = [_tensors_head] * 5 + [_tensors_length, _tensors_nested, *ANY]

# npz: a zip file of arrays, each a head in Python's notation and the data.


def _zip_members(content: bytes) -> dict[str, bytes]:
  try:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
      return {name: archive.read(name) for name in archive.namelist()}
  except (zipfile.BadZipFile, zlib.error, ValueError, OSError, NotImplementedError, EOFError):
    return {}
  except (RuntimeError, struct.error):
    return {}


def _zip_of(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", method, compresslevel=1) as archive:
    for name, body in members.items():
      archive.writestr(zipfile.ZipInfo(name), body, method)
  return buffer.getvalue()


def _npy_head(generator: random.Random, content: bytes) -> bytes:
  """An array whose head promises another shape, type or order than there is data for."""
  members = _zip_members(content)
  if not members:
    return flip_bits(generator, content)
  name = generator.choice(sorted(members))
  body = members[name]
  length = int.from_bytes(body[8:10], "little")
  head, data = body[10 : 10 + length].decode("latin1"), body[10 + length :]
  shapes = ("()", "(0,)", "(-1,)", "(4,)", f"({1 << 40},)", f"({1 << 30}, {1 << 30}, 3)", "(4.5,)")
  kinds = ("'|O'", "'<U100000'", "'<f8'", "'|u1'", "'|V9'", "[('a', '<i4')]", "'M8[ns]'", "3")
  choice = generator.randrange(4)
  if choice == 0:
    head = head[: head.find("'shape':") + 8] + f" {generator.choice(shapes)}, }}"
  elif choice == 1:
    end = head.find(", 'fortran")
    head = "{'descr': " + generator.choice(kinds) + head[end:]
  elif choice == 2:
    head = head.replace("False", generator.choice(("True", "None", "7")))
  else:
    nested = "(" * 3000 + ")" * 3000
    head = generator.choice(("", "{}", "[" * 20_000, f"{{'a': {nested}}}", "1+1", "__import__"))
  packed = head.encode("latin1") + b" " * (63 - len(head) % 64) + b"\n"
  length = generator.choice((len(packed), len(packed), number(generator, 2, len(packed))))
  members[name] = body[:8] + (length & 0xFFFF).to_bytes(2, "little") + packed + data
  return _zip_of(members)


def _zip_members_wrong(generator: random.Random, content: bytes) -> bytes:
  """Members that are missing, renamed, empty, no arrays, or swapped."""
  members = _zip_members(content)
  if not members:
    return flip_bits(generator, content)
  names = sorted(members)
  name, other = generator.choice(names), generator.choice(names)
  choice = generator.randrange(5)
  if choice == 0:
    del members[name]
  elif choice == 1:
    members[generator.choice(("../x.npy", "images", "a.npy", "labels.npy"))] = members[name]
  elif choice == 2:
    members[name] = generator.choice((b"", b"text", members[name][:20]))
  elif choice == 3:
    members[name] = generator.choice((flip_bits, truncate))(generator, members[name])
  else:
    members[name], members[other] = members[other], members[name]
  return _zip_of(members, generator.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


def _zip_bomb(generator: random.Random, content: bytes) -> bytes:
  """An array of 300 MiB of zeros in a third of a megabyte."""
  members = _zip_members(content)
  name = generator.choice(("labels", "names", "classes", "extra", "offsets", "header"))
  head = f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({_BOMB_BYTES // 8},), }}".encode()
  head += b" " * (117 - len(head)) + b"\n"
  body = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head
  members[f"{name}.npy"] = body + bytes(_BOMB_BYTES)
  return _zip_of(members)


def _zip_directory(generator: random.Random, content: bytes) -> bytes:
  """Numbers of the central directory and of its end."""
  at = content.rfind(generator.choice((b"PK\x05\x06", b"PK\x01\x02", b"PK\x03\x04")))
  if at < 0:
    return flip_bits(generator, content)
  where = at + generator.choice((4, 6, 8, 10, 12, 16, 20, 24, 28, 30, 42))
  return number_at(generator, content, where, generator.choice((2, 4)), "little")


NPZ = [_npy_head] * 6 + [_zip_members_wrong] * 3 + [_zip_directory] * 3 + [*ANY]
# Rare, as each takes a second to make.
NPZ_BOMB = _zip_bomb
