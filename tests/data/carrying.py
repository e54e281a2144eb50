"""Files that carry things besides pixels, and what of it is found in the saved file."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from udp_jax.data import images, metadata, photoshop

SECRET = Image.new("RGB", (16, 12), (200, 30, 60))  # What a preview would show.
XMP = b"""<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/"
 xmlns:dc="http://purl.org/dc/elements/1.1/" plus:DataMining="PROHIBITED > 0"%s>
<dc:rights><rdf:Alt><rdf:li xml:lang="x-default">\xc2\xa9 An Artist</rdf:li></rdf:Alt></dc:rights>
%s</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""


PLAIN_XMP = XMP % (b"", b"")


def jpeg_of(image: Image.Image = SECRET, **options: object) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, "JPEG", **options)
  return buffer.getvalue()


def segment(kind: int, data: bytes) -> bytes:
  return struct.pack(">BBH", 0xFF, kind, len(data) + 2) + data


def with_segments(*segments: bytes, jpeg: bytes | None = None) -> bytes:
  jpeg = jpeg or jpeg_of()
  return jpeg[:2] + b"".join(segments) + jpeg[2:]


def png_of(*chunks: tuple[bytes, bytes], image: Image.Image = SECRET) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, "PNG")
  content = buffer.getvalue()
  return content[:33] + b"".join(png_chunk(*chunk) for chunk in chunks) + content[33:]


def png_chunk(kind: bytes, data: bytes) -> bytes:
  return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def read_file(folder: Path, content: bytes, name: str = "a.jpg") -> images.Picture:
  (folder / name).write_bytes(content)
  return images.read_image(folder / name)


def saved_chunks(folder: Path, picture: images.Picture) -> dict[bytes, list[bytes]]:
  """Chunks of the saved file; it reads back as the same picture, and nothing is lost again."""
  fields = {key: value for key, value in picture._asdict().items() if key != "notes"}
  content = images.encode_png(**fields)
  again = read_file(folder, content, "saved.png")
  assert again.notes == ()
  for key, value in fields.items():
    np.testing.assert_array_equal(getattr(again, key), value, key)
  with Image.open(io.BytesIO(content)) as image:  # Readable by others.
    image.load()
  chunks: dict[bytes, list[bytes]] = {}
  at = 8
  while at < len(content):
    (length,) = struct.unpack_from(">I", content, at)
    chunks.setdefault(content[at + 4 : at + 8], []).append(content[at + 8 : at + 8 + length])
    at += 12 + length
  return chunks


def assert_no_preview(chunks: dict[bytes, list[bytes]]) -> None:
  """No picture begins anywhere but in the pixels, in raw bytes, compressed or as hexadecimal."""
  for kind, found in chunks.items():
    for data in found:
      texts = [] if kind == b"IDAT" else [data]
      if kind in (b"zTXt", b"iCCP"):
        texts.append(zlib.decompress(data.partition(b"\0")[2][1:]))
        if kind == b"zTXt":
          texts.append(photoshop.from_raw_profile(texts[-1]))
      for text in texts:
        assert b"\xff\xd8\xff" not in text and b"/9j/" not in text, kind
  for block in chunks.get(b"eXIf", []):
    order = "<" if block[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", block, 4)
    (count,) = struct.unpack_from(f"{order}H", block, start)
    assert struct.unpack_from(f"{order}I", block, start + 2 + 12 * count) == (0,)  # No IFD1.


def xmp_of(chunks: dict[bytes, list[bytes]]) -> bytes:
  (found,) = [data for data in chunks[b"iTXt"] if data.startswith(b"XML:com.adobe.xmp\0")]
  return found[len(b"XML:com.adobe.xmp\0\0\0\0\0") :]


def left_out(picture: images.Picture) -> set[str]:
  """Keys of the table's rows in the notes."""
  notes = {metadata.note(key): key for key, row in metadata.TABLE.items()}
  return {notes[note] for note in picture.notes}


def exif_block(orientation: int = 1) -> bytes:
  """A block like a camera's: private things, a maker note, a preview, and bytes of nobody."""
  exif = Image.Exif()
  exif[0x010E], exif[0x013B], exif[0x8298] = "a title", "An Artist", "(c) An Artist"
  if orientation != 1:
    exif[0x0112] = orientation
  inner = exif.get_ifd(0x8769)
  inner[0x829A] = 0.01
  inner[0x9286] = b"ASCII\0\0\0a comment"
  inner[0x927C] = b"Maker\0" + jpeg_of()
  inner[0xA431] = "SERIAL-4711"
  position = exif.get_ifd(0x8825)
  position[1], position[2] = "N", (59.0, 54.0, 0.0)
  block = exif.tobytes()[6:]
  # The preview's directory, which Pillow does not write, and its bytes.
  order = "<" if block[:2] == b"II" else ">"
  preview = jpeg_of()
  (first,) = struct.unpack_from(f"{order}I", block, 4)
  (count,) = struct.unpack_from(f"{order}H", block, first)
  link = first + 2 + 12 * count
  start = len(block)
  place = start + 2 + 24 + 4
  directory = struct.pack(f"{order}H", 2)
  directory += struct.pack(f"{order}HHII", 0x0201, 4, 1, place)
  directory += struct.pack(f"{order}HHII", 0x0202, 4, 1, len(preview)) + b"\0\0\0\0"
  whole = block[:link] + struct.pack(f"{order}I", start) + block[link + 4 :]
  return b"Exif\0\0" + whole + directory + preview + b"forgotten: " + preview


def write_file(path: Path, content: bytes) -> Path:
  path.write_bytes(content)
  return path
