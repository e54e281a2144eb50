"""Takes picture files apart into the stream that holds pixels and everything beside it.

Pillow gets PNG and JPEG files without their metadata, so that damage or a decompression bomb there
costs only the metadata, not the picture. Everything saved beside the pixels passes through this
module. Unreadable parts are left out with a note.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

from udp_jax.data import exif, metadata, photoshop, picture_texts, xmp

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# More pieces of metadata than any real file has; reading on would take minutes.
_MAX_PIECES = 100_000
# Pillow reads larger files directly; a picture of 100 megapixels fits below this.
_MAX_FILE = 1 << 30
_XMP_KEYWORD = b"XML:com.adobe.xmp"
_IPTC_KEYWORD = b"Raw profile type iptc"
# Some writers use capitals.
_RAW_KEYWORD = re.compile(rb"raw\s+profile\s+type\s+(\S+)\s*\Z", re.IGNORECASE)
_RDF = b"http://www.w3.org/1999/02/22-rdf-syntax-ns#"

_PNG_LENGTHS = {
  b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4, b"mDCV": 24, b"cLLI": 8, b"pHYs": 9, b"tIME": 7,
}  # fmt: skip
# Ancillary chunks that affect the pixels.
_PNG_PIXELS = frozenset({b"tRNS", b"acTL", b"fcTL", b"fdAT"})
_PNG_ORDER = (b"cICP", b"sRGB", b"gAMA", b"cHRM", b"mDCV", b"cLLI", b"pHYs", b"tIME")

_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_JPEG_XMP_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_EXTENDED = re.compile(rb"HasExtendedXMP\s*(?:=\s*[\"']|>\s*)([0-9A-Fa-f]{32})")

Chunk = tuple[bytes, bytes]


class Contents(NamedTuple):
  """A file's contents besides its pixels, ready for the saved PNG.

  Attributes:
    stream: the file without its metadata; None if Pillow should read the file itself.
    orientation: orientation from EXIF or XMP, 1 to 8.
    icc_profile: the colour profile as stored in the file.
    exif: a new EXIF block, made by `exif.carry`.
    chunks: PNG chunks (type, data) in writing order: colour, resolution, time, texts.
    notes: descriptions of what was dropped or converted.
  """

  stream: bytes | None = None
  orientation: int = 1
  icc_profile: bytes | None = None
  exif: bytes | None = None
  chunks: tuple[Chunk, ...] = ()
  notes: tuple[str, ...] = ()


def read(path: Path) -> Contents:
  """Takes a file apart.

  Raises:
    OSError: the file cannot be read.
    ValueError: the file has more than `_MAX_PIECES` pieces.

  >>> import tempfile
  >>> import numpy as np
  >>> from udp_jax.data import images
  >>> with tempfile.TemporaryDirectory() as place:
  ...   images.write_png(f"{place}/a.png", np.full((4, 4, 3), 255, np.uint8))
  ...   read(Path(place) / "a.png").chunks
  ()
  """
  with open(path, "rb") as file:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(16)
    found = _Found()
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
      _tiff(file, found)
    elif head[:2] == b"BM":
      _bmp(file, size, found)
    elif size <= _MAX_FILE:
      content = head + file.read()
      if head.startswith(PNG_SIGNATURE):
        _png(content, found)
      elif head.startswith(b"\xff\xd8"):
        _jpeg(content, found)
      elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        _webp(content, found)
      elif head.startswith(b"GIF8"):
        _gif(content, found)
    return found.contents()


def text_chunk(keyword: bytes, text: bytes) -> Chunk:
  """Makes an iTXt chunk from UTF-8 text.

  >>> kind, data = text_chunk(b"Title", b"A cat")
  >>> kind, text_of(kind, data)
  (b'iTXt', (b'Title', b'A cat'))
  """
  return b"iTXt", keyword + b"\0\0\0\0\0" + text


class _Found:
  """Collects the metadata that the parsers find; the first of each kind is used."""

  def __init__(self) -> None:
    self.stream: bytes | None = None
    self.icc: bytes | None = None
    self._exif: exif.Exif | None = None
    self._xmp: xmp.Packet | None = None
    self._block, self._packet = b"", b""  # As read from the file.
    self._packets: list[bytes] = []  # XMP under other names, which is used last.
    self._photoshop = b""
    self._fixed: dict[bytes, bytes] = {}
    self._texts: list[Chunk] = []
    self._dropped: dict[str, None] = {}
    self._pieces = 0

  def count(self) -> None:
    """Counts a piece of metadata; raises ValueError if there are too many."""
    self._pieces += 1
    if self._pieces > _MAX_PIECES:
      raise ValueError(f"more than {_MAX_PIECES} pieces of metadata")

  def drop(self, *keys: str) -> None:
    """Records what is dropped or converted."""
    self._dropped.update(dict.fromkeys(keys))

  def fixed(self, kind: bytes, data: bytes) -> None:
    """Stores a chunk that a file may have once."""
    self._fixed.setdefault(kind, data)

  def density(self, value: tuple[int, int] | None) -> None:
    """Stores the resolution (x, y) in pixels per metre."""
    if value is not None and all(0 < v < 2**31 for v in value):
      self.fixed(b"pHYs", struct.pack(">IIB", *value, 1))

  def profile(self, data: bytes) -> None:
    """Stores an ICC profile."""
    if len(data) > metadata.MAX_BYTES:
      self.drop("oversized")
    elif self.icc is None and data:
      self.icc = data

  def block(self, data: bytes) -> None:
    """Stores an EXIF block."""
    data = data.removeprefix(b"Exif\0\0")
    if self._exif is None and data:
      self._block = data
      self.directories(exif.of_block(data))
    elif data not in (self._block, b""):
      self.drop("second")

  def directories(self, found: exif.Exif) -> None:
    """Stores EXIF, or the tags of a TIFF file."""
    self._exif = found
    self.drop(*found.dropped)
    self.density(found.density)
    if data := found.apart.get(34675):
      self.profile(data)
    if data := found.apart.get(700):
      self.packet(data)
    if data := found.apart.get(34377):
      self.resources(data)
    if data := found.apart.get(33723):
      self.records(data)

  def packet(self, data: bytes, extension: bytes = b"") -> None:
    """Stores an XMP packet and its extension from further JPEG segments."""
    if self._xmp is not None:
      if data != self._packet:
        self.drop("second")
      return
    self._packet = data
    try:
      self._xmp = xmp.filtered(data)
    except ValueError:
      self.drop("damaged_xmp")
      return
    self.drop(*self._xmp.dropped)
    if not extension:
      return
    try:
      more = xmp.filtered(extension)
      self.drop(*more.dropped)
      self._xmp = self._xmp._replace(text=xmp.joined(self._xmp.text, more.text))
    except ValueError:
      self.drop("damaged_xmp")

  def resources(self, block: bytes) -> None:
    """Stores Photoshop's resources."""
    if self._photoshop or len(block) > metadata.MAX_BYTES:
      return
    found = photoshop.filtered(block)
    self._photoshop = found.block
    self.drop(*found.dropped)
    self.density(found.density)

  def records(self, iptc: bytes) -> None:
    """Stores separate IPTC records, unless Photoshop's resources were found first."""
    # Some writers use the type of 32-bit numbers for this tag and pad with zeros.
    if iptc.strip(b"\0"):
      self.resources(photoshop.resource(photoshop.IPTC, iptc))

  def text(self, kind: bytes, data: bytes) -> None:
    """Stores a PNG text chunk."""
    if len(self._texts) >= metadata.MAX_TEXTS:
      self.drop("oversized")
      return
    try:
      keyword, text = text_of(kind, data)
    except ValueError as error:
      self.drop("oversized" if str(error) == "too large" else "damaged")
      return
    if keyword == _XMP_KEYWORD:
      self.packet(text)
    elif match := _RAW_KEYWORD.match(keyword):
      self._raw_profile(match.group(1).lower(), text)
    elif _is_packet(text):
      self._packets.append(text)
    else:
      encoding = "utf-8" if kind == b"iTXt" else "latin-1"
      kept, dropped = picture_texts.of_text(keyword.decode("latin-1"), text.decode(encoding))
      self.drop(*dropped)
      if not dropped:
        self._texts.append((kind, data))
      elif kept.strip():
        self._texts.append(_encoded(kind, data, kept.encode(encoding)))

  def _raw_profile(self, kind: bytes, text: bytes) -> None:
    try:
      data = photoshop.from_raw_profile(text)
    except ValueError:
      self.drop("damaged")
      return
    if kind in (b"exif", b"app1") and data.startswith((b"Exif\0\0", *exif.HEADERS)):
      self.block(data)
    elif kind in (b"xmp", b"app1"):
      self.packet(data.removeprefix(_JPEG_XMP))
    elif kind in (b"iptc", b"8bim"):
      data = data.removeprefix(b"Photoshop 3.0\0")
      (self.resources if data.startswith(b"8BIM") else self.records)(data)
    elif kind in (b"icc", b"icm"):
      self.profile(data)
    else:
      self.drop("application")

  def comment(self, data: bytes) -> None:
    """Stores a JPEG or GIF comment, in any encoding."""
    data = data.rstrip(b"\0")
    try:
      text = data.decode("utf-8")
    except UnicodeDecodeError:
      text = data.decode("latin-1")
    if len(data) > metadata.MAX_COMPRESSED or len(self._texts) >= metadata.MAX_TEXTS:
      self.drop("oversized")
    elif _is_packet(data):
      self._packets.append(data)
    else:
      kept, dropped = picture_texts.of_text("Comment", text.replace("\0", ""))
      self.drop(*dropped)
      if kept.strip() or (kept and not dropped):
        self._texts.append(text_chunk(b"Comment", kept.encode()))

  def contents(self) -> Contents:
    """Returns everything found, in the order of a PNG file."""
    for packet in self._packets:
      self.packet(packet)
    found = self._exif or exif.Exif()
    orientation = found.orientation
    chunks = [(kind, self._fixed[kind]) for kind in _PNG_ORDER if kind in self._fixed]
    if self._xmp is not None:
      chunks.append(text_chunk(_XMP_KEYWORD, self._xmp.text))
      if orientation == 1:
        orientation = self._xmp.orientation
    if self._photoshop:
      text = photoshop.raw_profile("iptc", self._photoshop)
      chunks.append((b"zTXt", _IPTC_KEYWORD + b"\0\0" + zlib.compress(text, 9)))
    notes = [metadata.note(key) for key in self._dropped if metadata.TABLE[key].said]
    return Contents(
      self.stream,
      orientation,
      self.icc,
      found.block,
      (*chunks, *self._texts),
      tuple(notes),
    )


def inflate(data: bytes, limit: int = metadata.MAX_COMPRESSED) -> bytes:
  """Decompresses `data`. Raises ValueError if it is damaged, or "too large".

  >>> import zlib
  >>> inflate(zlib.compress(b"text"))
  b'text'
  """
  decompress = zlib.decompressobj()
  try:
    found = decompress.decompress(data, limit + 1)
  except zlib.error as error:
    raise ValueError("damaged") from error
  if len(found) > limit:
    raise ValueError("too large")
  if not decompress.eof:
    raise ValueError("damaged")
  return found


def text_of(kind: bytes, data: bytes) -> tuple[bytes, bytes]:
  """Returns keyword and text of a PNG text chunk. Raises ValueError if damaged or too large.

  >>> text_of(b"tEXt", b"Title\\0A cat")
  (b'Title', b'A cat')
  """
  keyword, mark, rest = data.partition(b"\0")
  if not mark or not 1 <= len(keyword) <= 79:
    raise ValueError("no keyword")
  if kind == b"tEXt":
    text = rest
  elif kind == b"zTXt":
    if rest[:1] != b"\0":
      raise ValueError("unknown compression")
    text = inflate(rest[1:])
  else:
    if len(rest) < 2 or rest[0] > 1 or rest[1] != 0:
      raise ValueError("unknown compression")
    parts = rest[2:].split(b"\0", 2)
    if len(parts) < 3:
      raise ValueError("no text")
    text = inflate(parts[2]) if rest[0] else parts[2]
    text.decode("utf-8")  # UnicodeDecodeError is a ValueError.
  if len(text) > metadata.MAX_BYTES:
    raise ValueError("too large")
  return keyword, text


def _encoded(kind: bytes, data: bytes, text: bytes) -> Chunk:
  """Returns a PNG text chunk with its text replaced."""
  keyword, _, rest = data.partition(b"\0")
  if kind == b"tEXt":
    return kind, keyword + b"\0" + text
  if kind == b"zTXt":
    return kind, keyword + b"\0\0" + zlib.compress(text)
  language, translated, _ = rest[2:].split(b"\0", 2)
  head = b"\0".join([keyword, rest[:2] + language, translated, b""])
  return kind, head + (zlib.compress(text) if rest[0] else text)


def _is_packet(text: bytes) -> bool:
  """Returns whether a text is XMP, whatever its keyword."""
  return text.lstrip(b"\xef\xbb\xbf\0 \t\r\n").startswith(b"<") and _RDF in text


def _png(content: bytes, found: _Found) -> None:
  kept = [PNG_SIGNATURE]
  at, ended = len(PNG_SIGNATURE), False
  while at + 12 <= len(content):
    (length,) = struct.unpack_from(">I", content, at)
    kind, end = content[at + 4 : at + 8], at + 12 + length
    if end > len(content) or not kind.isalpha():
      break
    if not kind[0] & 0x20 or kind in _PNG_PIXELS:
      kept.append(content[at:end])
    else:
      found.count()
      data = content[at + 8 : end - 4]
      if zlib.crc32(content[at + 4 : end - 4]) == int.from_bytes(content[end - 4 : end], "big"):
        _png_chunk(kind, data, found)
      else:
        found.drop("damaged")
    at = end
    if kind == b"IEND":
      ended = True
      break
  if not ended:
    kept.append(content[at:])  # Pillow reports what is wrong.
  elif content[at:].strip(b"\0"):
    found.drop("second_picture")
  found.stream = b"".join(kept)


def _png_chunk(kind: bytes, data: bytes, found: _Found) -> None:
  if kind in _PNG_LENGTHS:
    # A resolution without a unit gives the pixels' aspect ratio, so keep it too.
    if len(data) == _PNG_LENGTHS[kind]:
      found.fixed(kind, data)
    else:
      found.drop("damaged")
  elif kind == b"iCCP":
    _, mark, rest = data.partition(b"\0")
    try:
      if not mark or rest[:1] != b"\0":
        raise ValueError("damaged")
      found.profile(inflate(rest[1:], metadata.MAX_BYTES))
    except ValueError as error:
      found.drop("oversized" if str(error) == "too large" else "damaged")
  elif kind == b"eXIf":
    found.block(data)
  elif kind in (b"tEXt", b"zTXt", b"iTXt"):
    found.text(kind, data)
  else:
    found.drop(metadata.BY_CHUNK.get(kind, "application"))


def _jpeg(content: bytes, found: _Found) -> None:
  kept = [content[:2]]
  profiles: dict[int, bytes] = {}
  blocks: dict[str, bytes] = {}
  extensions: dict[bytes, dict[int, bytes]] = {}
  at, ended = 2, False
  while True:
    match = _JPEG_MARKER.search(content, at)
    if match is None:
      break
    # Fill bytes may stand before any marker, in any number; Pillow reads them one by one.
    kept.append(content[at : match.start()].rstrip(b"\xff"))
    kind, at = match.group(1)[0], match.end()
    if kind == 0xD9:
      kept.append(b"\xff\xd9")
      ended = True
      break
    if kind in (0x01, 0xD8):
      kept.append(content[match.start() : at])
      continue
    length = int.from_bytes(content[at : at + 2], "big")
    if length < 2 or at + length > len(content):
      at = match.start()
      break
    data = content[at + 2 : at + length]
    if kind == 0xEE or not (0xE0 <= kind <= 0xEF or kind == 0xFE):
      kept.append(content[match.start() : at + length])  # APP14 says how colours are coded.
    else:
      found.count()
      _jpeg_segment(kind, data, found, profiles, blocks, extensions)
    at += length
  if not ended:
    kept.append(content[at:])
  elif content[at:].strip(b"\0\xff\n\r "):
    found.drop("second_picture")
  found.stream = b"".join(kept)
  if profiles:
    found.profile(b"".join(profiles[number] for number in sorted(profiles)))
  if "exif" in blocks:
    found.block(blocks["exif"])
  if "xmp" in blocks:
    found.packet(blocks["xmp"], _extension(blocks["xmp"], extensions, found))
  if "photoshop" in blocks:
    found.resources(blocks["photoshop"])


def _jpeg_segment(
  kind: int,
  data: bytes,
  found: _Found,
  profiles: dict[int, bytes],
  blocks: dict[str, bytes],
  extensions: dict[bytes, dict[int, bytes]],
) -> None:
  if kind == 0xE0 and data.startswith(b"JFIF\0") and len(data) >= 14:
    unit, x, y, width, height = struct.unpack_from(">BHHBB", data, 7)
    metre = {1: 1 / 0.0254, 2: 100.0}.get(unit)
    if metre is not None:
      found.density((round(x * metre), round(y * metre)))
    if width * height:
      found.drop("jfif_preview")
  elif kind == 0xE0 and data.startswith(b"JFXX\0"):
    found.drop("jfif_preview")
  elif kind == 0xE1 and data.startswith(b"Exif\0"):
    # Blocks over 64 KiB continue in the next segment.
    if "exif" in blocks and data[6:10] in exif.HEADERS:
      found.drop("second")
    else:
      blocks["exif"] = blocks.get("exif", b"Exif\0\0") + data[6:]
  elif kind == 0xE1 and data.startswith(_JPEG_XMP):
    blocks.setdefault("xmp", data[len(_JPEG_XMP) :])
  elif kind == 0xE1 and data.startswith(_JPEG_XMP_EXTENSION):
    rest = data[len(_JPEG_XMP_EXTENSION) :]
    if len(rest) >= 40:
      part = extensions.setdefault(rest[:32], {})
      part[int.from_bytes(rest[36:40], "big")] = rest[40:]
  elif kind == 0xE2 and data.startswith(b"ICC_PROFILE\0") and len(data) > 14:
    profiles.setdefault(data[12], data[14:])
  elif kind == 0xE2 and data.startswith(b"MPF\0"):
    found.drop("second_picture")
  elif kind == 0xE2 and data.startswith(b"FPXR"):
    found.drop("flashpix")
  elif kind == 0xED and data.startswith(b"Photoshop 3.0\0"):
    blocks["photoshop"] = blocks.get("photoshop", b"") + data[14:]
  elif kind == 0xEB and data.startswith(b"JP"):
    found.drop("credentials")
  elif kind == 0xFE:
    found.comment(data)
  else:
    found.drop("application")


def _extension(main: bytes, parts: dict[bytes, dict[int, bytes]], found: _Found) -> bytes:
  """Joins the extended XMP that the main packet refers to."""
  named = _EXTENDED.search(main)
  chosen = parts.get(named.group(1)) if named else None
  if chosen is None:
    if parts or named:
      found.drop("damaged_xmp")
    return b""
  whole = b""
  for offset in sorted(chosen):
    if offset != len(whole):
      found.drop("damaged_xmp")
      return b""
    whole += chosen[offset]
    if len(whole) > metadata.MAX_BYTES:
      found.drop("oversized")
      return b""
  return whole


def _webp(content: bytes, found: _Found) -> None:
  end = min(len(content), 8 + int.from_bytes(content[4:8], "little"))
  at = 12
  while at + 8 <= end:
    found.count()
    kind, size = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
    data = content[at + 8 : min(at + 8 + size, end)]
    if kind == b"ICCP":
      found.profile(data)
    elif kind == b"EXIF":
      found.block(data)
    elif kind == b"XMP ":
      found.packet(data)
    elif kind == b"C2PA":
      found.drop("credentials")
    elif kind not in (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"):
      found.drop("application")
    at += 8 + size + size % 2
  if content[end:].strip(b"\0"):
    found.drop("second_picture")


def _gif(content: bytes, found: _Found) -> None:
  at = 13 + (3 << ((content[10] & 7) + 1) if len(content) > 10 and content[10] & 0x80 else 0)
  kept = [content[:at]]
  while at + 2 <= len(content):
    kind, label, start = content[at], content[at + 1], at
    if kind == 0x2C and at + 10 <= len(content):
      table = content[at + 9]
      at = _gif_end(content, at + 11 + (3 << ((table & 7) + 1) if table & 0x80 else 0))
      kept.append(content[start:at])
    elif kind == 0x21 and label == 0xFF:
      found.count()
      name, start = content[at + 3 : at + 14], at + 3
      at = _gif_end(content, at + 2)
      if name == b"XMP DataXMP":
        # XMP is not split into blocks; the bytes 1, 255, 254, ... after it lead readers to the end.
        found.packet(content[start + 11 : at].rpartition(b"\1\xff\xfe\xfd")[0])
      elif name == b"ICCRGBG1012":
        found.profile(_gif_data(content, start + 11))
      elif name not in (b"NETSCAPE2.0", b"ANIMEXTS1.0"):
        found.drop("application")
    elif kind == 0x21:
      if label == 0xFE:
        found.count()
        found.comment(_gif_data(content, at + 2))
      at = _gif_end(content, at + 2)
      if label == 0xF9:  # Transparency and timing of the next picture.
        kept.append(content[start:at])
    else:
      if kind == 0x3B and content[at + 1 :].strip(b"\0"):
        found.drop("second_picture")
      break
  # The rest is the trailer, or damage that Pillow should report.
  found.stream = b"".join([*kept, content[at:]])


def _gif_end(content: bytes, at: int) -> int:
  """Returns the position after the blocks that begin at `at`."""
  while at < len(content) and content[at]:
    at += 1 + content[at]
  return at + 1


def _gif_data(content: bytes, at: int) -> bytes:
  """Returns the data of the blocks that begin at `at`, up to the size limit of a text."""
  parts, size = [], 0
  while at < len(content) and content[at] and size <= metadata.MAX_COMPRESSED:
    parts.append(content[at + 1 : at + 1 + content[at]])
    size += content[at]
    at += 1 + content[at]
  return b"".join(parts)


def _tiff(file: BinaryIO, found: _Found) -> None:
  def at(start: int, count: int) -> bytes:
    if start >= 2**63:
      return b""
    file.seek(start)
    return file.read(count)

  found.directories(exif.carry(at, pages=True))


def _bmp(file: BinaryIO, size: int, found: _Found) -> None:
  file.seek(0)
  head = file.read(138)
  header = int.from_bytes(head[14:18], "little")
  if header >= 40 and len(head) >= 54:
    found.density(struct.unpack_from("<ii", head, 38))
  if header >= 124 and len(head) == 138 and head[70:74] == b"DEBM":
    start, length = struct.unpack_from("<II", head, 126)
    if 14 + start + length <= size and length <= metadata.MAX_BYTES:
      file.seek(14 + start)
      found.profile(file.read(length))
    else:
      found.drop("damaged")
