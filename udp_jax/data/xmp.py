"""Cuts what `metadata.TABLE` drops out of XMP packets; every other byte stays unchanged."""

from __future__ import annotations

import re
from typing import NamedTuple
from xml.parsers import expat

from udp_jax.data import metadata, picture_marks

_MAX_DEPTH = 100
_MAX_ELEMENTS = 100_000
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns# RDF"
# Possessive quantifiers: backtracking would store a state for every character of a long tag.
_TAG = re.compile(rb"""<(?:[^>"']++|"[^"]*+"|'[^']*+')*+>""")
_ATTRIBUTE = re.compile(rb"""(?<=\s)([^\s=]+)\s*=\s*("[^"]*"|'[^']*')""")


class Packet(NamedTuple):
  """The kept part of a packet.

  Attributes:
    text: the packet in UTF-8.
    orientation: value of tiff:Orientation, or 1.
    dropped: keys of `metadata.TABLE`.
  """

  text: bytes
  orientation: int
  dropped: tuple[str, ...]


def filtered(packet: bytes) -> Packet:
  """Returns a packet without what the table drops.

  Raises:
    ValueError: the packet is not well-formed XML, or a part of it cannot be told from a preview.

  >>> start = b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
  >>> filtered(start + b"</rdf:RDF>")[1:]
  (1, ())
  """
  packet = _utf8(packet)
  walk = _Walk(packet)
  parts, last = [], 0
  for start, end in walk.cuts:
    parts.append(packet[last:start])
    last = end
  text = b"".join([*parts, packet[last:]])
  if picture_marks.found(text):
    raise ValueError("a picture outside of any property")
  return Packet(text, walk.orientation, tuple(dict.fromkeys(walk.dropped)))


def joined(main: bytes, extension: bytes) -> bytes:
  """Inserts the descriptions of an extension into the main packet.

  Raises:
    ValueError: one of the packets is damaged, or they do not fit together.

  >>> start = b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
  >>> joined(start + b"</rdf:RDF>", start + b"<!-- more --></rdf:RDF>")[-30:]
  b'x-ns#"><!-- more --></rdf:RDF>'
  """
  start, end = _Walk(extension).content
  place = _Walk(main).content[1]
  whole = main[:place] + extension[start:end] + main[place:]
  _Walk(whole)
  return whole


def _utf8(packet: bytes) -> bytes:
  """Converts a packet to UTF-8, which PNG requires."""
  for mark, encoding in (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (b"<\0\0\0", "utf-32-le"),
    (b"\0\0\0<", "utf-32-be"),
    (b"<\0", "utf-16-le"),
    (b"\0<", "utf-16-be"),
  ):
    if packet.startswith(mark):
      return packet.decode(encoding).encode()
  return packet.strip(b"\0")


class _Walk:
  """Parses a packet once and finds the byte ranges to cut."""

  def __init__(self, packet: bytes):
    if len(packet) > metadata.MAX_BYTES:
      raise ValueError("too large")
    self.cuts: list[tuple[int, int]] = []
    self.dropped: list[str] = []
    self.orientation = 1
    self.content = (0, 0)
    self._packet, self._elements = packet, 0
    # Per open element: key of the row that drops it, start, end of its start tag, whether it has
    # children, whether an enclosing element is dropped.
    self._open: list[list] = []
    self._parser = expat.ParserCreate("utf-8", " ")
    self._parser.ordered_attributes = True
    self._parser.StartElementHandler = self._start
    self._parser.EndElementHandler = self._end
    self._parser.StartDoctypeDeclHandler = self._refuse
    try:
      self._parser.Parse(packet, True)
    except expat.ExpatError as error:
      raise ValueError(str(error)) from error
    if not self.content[1]:
      raise ValueError("no rdf:RDF in it")

  def _refuse(self, *_: object) -> None:
    raise ValueError("a document type, which XMP has none of")

  def _start(self, name: str, attributes: list[str]) -> None:
    self._elements += 1 + len(attributes) // 2
    if len(self._open) >= _MAX_DEPTH or self._elements > _MAX_ELEMENTS:
      raise ValueError("more elements than any packet needs")
    if self._open:
      self._open[-1][3] = True
    start = self._parser.CurrentByteIndex
    tag = _TAG.match(self._packet, start)
    if tag is None:
      raise ValueError("a tag without an end")
    dropping = bool(self._open) and self._open[-1][0] is not None
    key = self._open[-1][0] if dropping else self._key(name, None)
    self._open.append([key, start, tag.end(), False, dropping])
    if key is None:
      self._attributes(tag.group(), start, attributes)

  def _attributes(self, tag: bytes, start: int, attributes: list[str]) -> None:
    written = [m for m in _ATTRIBUTE.finditer(tag) if not m.group(1).startswith(b"xmlns")]
    if 2 * len(written) != len(attributes):
      raise ValueError("attributes that cannot be told apart")
    for match, name, value in zip(written, attributes[::2], attributes[1::2]):
      key = self._key(name, value)
      if key is None and picture_marks.found(match.group(2)):
        key = "xmp_preview"
      if key is not None:
        self.dropped.append(key)
        self.cuts.append((start + match.start(), start + match.end()))

  def _key(self, name: str, value: str | None) -> str | None:
    """Returns the key of the row that drops an element or attribute, or None."""
    namespace, _, local = name.rpartition(" ")
    key = metadata.of_property(namespace, local)
    if key == "orientation" and value is not None:
      return self._turn(value)
    # An element's value is known only at its end tag.
    return None if key == "orientation" else key

  def _turn(self, value: str) -> str | None:
    """Records an orientation; the value 1 also holds for the saved file and may stay."""
    value = value.strip()
    if value == "1":
      return None
    if value in set("2345678"):
      self.orientation = int(value)
    return "orientation"

  def _end(self, name: str) -> None:
    key, start, inner, parent, inside = self._open.pop()
    at = self._parser.CurrentByteIndex
    if at <= start:
      end = inner  # An empty element is a single tag.
    else:
      end = self._packet.index(b">", at) + 1
    if name == _RDF:
      self.content = (inner, at) if at > start else (0, 0)
    if inside:
      return
    if key is None and not parent:
      content = self._packet[inner:at] if at > start else b""
      namespace, _, local = name.rpartition(" ")
      if metadata.of_property(namespace, local) == "orientation":
        key = self._turn(content.decode("utf-8", "replace"))
      elif picture_marks.found(content):
        key = "xmp_preview"
    if key is not None:
      self.dropped.append(key)
      # This cut covers the cuts inside the element.
      while self.cuts and self.cuts[-1][0] >= start:
        self.cuts.pop()
      self.cuts.append((start, end))
