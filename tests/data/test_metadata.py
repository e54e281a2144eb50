"""What a picture carries besides pixels: kept, converted or left out, as the one table says."""

from __future__ import annotations

import base64
import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from udp_jax.data import containers, images, metadata, photoshop

SECRET = Image.new("RGB", (16, 12), (200, 30, 60))  # What a preview would show.
XMP = b"""<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/"
 xmlns:dc="http://purl.org/dc/elements/1.1/" plus:DataMining="PROHIBITED > 0"%s>
<dc:rights><rdf:Alt><rdf:li xml:lang="x-default">\xc2\xa9 An Artist</rdf:li></rdf:Alt></dc:rights>
%s</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""
PLAIN_XMP = XMP % (b"", b"")


def _jpeg(image: Image.Image = SECRET, **options: object) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, "JPEG", **options)
  return buffer.getvalue()


def _segment(kind: int, data: bytes) -> bytes:
  return struct.pack(">BBH", 0xFF, kind, len(data) + 2) + data


def _with_segments(*segments: bytes, jpeg: bytes | None = None) -> bytes:
  jpeg = jpeg or _jpeg()
  return jpeg[:2] + b"".join(segments) + jpeg[2:]


def _png(*chunks: tuple[bytes, bytes], image: Image.Image = SECRET) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, "PNG")
  content = buffer.getvalue()
  return content[:33] + b"".join(_chunk(*chunk) for chunk in chunks) + content[33:]


def _chunk(kind: bytes, data: bytes) -> bytes:
  return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _read(folder: Path, content: bytes, name: str = "a.jpg") -> images.Picture:
  (folder / name).write_bytes(content)
  return images.read_image(folder / name)


def _saved_chunks(folder: Path, picture: images.Picture) -> dict[bytes, list[bytes]]:
  """Chunks of the saved file; it reads back as the same picture, and nothing is lost again."""
  fields = {key: value for key, value in picture._asdict().items() if key != "notes"}
  content = images.encode_png(**fields)
  again = _read(folder, content, "saved.png")
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


def _assert_no_preview(chunks: dict[bytes, list[bytes]]) -> None:
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


def _xmp_of(chunks: dict[bytes, list[bytes]]) -> bytes:
  (found,) = [data for data in chunks[b"iTXt"] if data.startswith(b"XML:com.adobe.xmp\0")]
  return found[len(b"XML:com.adobe.xmp\0\0\0\0\0") :]


def _left_out(picture: images.Picture) -> set[str]:
  """Keys of the table's rows in the notes."""
  notes = {metadata.note(key): key for key, row in metadata.TABLE.items()}
  return {notes[note] for note in picture.notes}


def _exif(orientation: int = 1) -> bytes:
  """A block like a camera's: private things, a maker note, a preview, and bytes of nobody."""
  exif = Image.Exif()
  exif[0x010E], exif[0x013B], exif[0x8298] = "a title", "An Artist", "(c) An Artist"
  if orientation != 1:
    exif[0x0112] = orientation
  inner = exif.get_ifd(0x8769)
  inner[0x829A] = 0.01
  inner[0x9286] = b"ASCII\0\0\0a comment"
  inner[0x927C] = b"Maker\0" + _jpeg()
  inner[0xA431] = "SERIAL-4711"
  position = exif.get_ifd(0x8825)
  position[1], position[2] = "N", (59.0, 54.0, 0.0)
  block = exif.tobytes()[6:]
  # The preview's directory, which Pillow does not write, and its bytes.
  order = "<" if block[:2] == b"II" else ">"
  preview = _jpeg()
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


@pytest.mark.parametrize("orientation", [1, 6])
def test_exif_goes_along_without_previews_and_private_things(
  tmp_path: Path, orientation: int
) -> None:
  picture = _read(tmp_path, _with_segments(_segment(0xE1, _exif(orientation))))
  expected = {"exif_preview", "maker_note", "position", "serial"}
  assert _left_out(picture) == expected | ({"orientation"} if orientation != 1 else set())
  assert picture.pixels.shape == ((16, 12, 3) if orientation == 6 else (12, 16, 3))
  chunks = _saved_chunks(tmp_path, picture)
  _assert_no_preview(chunks)
  (block,) = chunks[b"eXIf"]
  assert b"SERIAL" not in block and b"forgotten" not in block
  with Image.open(tmp_path / "saved.png") as saved:
    exif = saved.getexif()
    assert (exif[0x010E], exif[0x013B], exif[0x8298]) == ("a title", "An Artist", "(c) An Artist")
    assert not exif.get_ifd(0x8825) and 0x0112 not in exif
    inner = exif.get_ifd(0x8769)
    assert inner[0x829A] == 0.01 and inner[0x9286] == b"ASCII\0\0\0a comment"
    assert 0x927C not in inner and 0xA431 not in inner


def test_previews_of_every_kind_stay_behind(tmp_path: Path) -> None:
  preview = _jpeg()
  start = b"/9j/4AAQSkZJRg=="
  thumbnails = (
    b'<xmp:Thumbnails xmlns:xmp="http://ns.adobe.com/xap/1.0/"><rdf:Alt><rdf:li'
    b' xmlns:g="http://ns.adobe.com/xap/1.0/g/img/"><g:image>' + start + b"</g:image></rdf:li>"
    b"</rdf:Alt></xmp:Thumbnails>"
  )
  other = b'<a:b xmlns:a="urn:any"><a:c>' + start + b'</a:c><a:d a:e="' + start + b'"/></a:b>'
  resources = photoshop.resource(0x040C, b"\0" * 28 + preview)
  resources += photoshop.resource(0x03F3, b"\0" * 9)
  resources += photoshop.resource(
    0x0404, b"\x1c\x02\x05\x00\x05title\x1c\x02\xca\x00\x03\xff\xd8\xff"
  )
  jfif = b"JFIF\0\1\1\1" + struct.pack(">HHBB", 72, 72, 2, 2) + b"\0" * 12
  content = _jpeg()[:2] + _segment(0xE0, jfif) + _segment(0xE0, b"JFXX\0\x10" + preview)
  content += _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP % (b"", thumbnails + other))
  content += _segment(0xED, b"Photoshop 3.0\0" + resources)
  content += _segment(0xE2, b"FPXR\0" + preview) + _segment(0xE2, b"MPF\0II*\0\x08\0\0\0\0\0")
  content += _segment(0xEC, b"Ducky") + _segment(0xEB, b"JP\0\1") + _segment(0xFE, b"a note")
  picture = _read(tmp_path, content + _jpeg()[20:] + preview, "a.mpo")
  assert _left_out(picture) == {
    *("jfif_preview", "xmp_preview", "photoshop_preview", "iptc_preview", "photoshop", "flashpix"),
    *("second_picture", "application", "credentials"),
  }
  np.testing.assert_array_equal(picture.pixels, np.asarray(Image.open(io.BytesIO(_jpeg()))))
  chunks = _saved_chunks(tmp_path, picture)
  _assert_no_preview(chunks)
  xmp = _xmp_of(chunks)
  assert xmp == XMP % (b"", b'<a:b xmlns:a="urn:any"><a:d /></a:b>')
  assert chunks[b"zTXt"][0].startswith(b"Raw profile type iptc\0")
  iptc = photoshop.from_raw_profile(zlib.decompress(chunks[b"zTXt"][0].split(b"\0\0", 1)[1]))
  assert iptc == photoshop.resource(0x0404, b"\x1c\x02\x05\x00\x05title")
  assert b"Comment\0\0\0\0\0a note" in chunks[b"iTXt"]
  assert struct.unpack(">IIB", chunks[b"pHYs"][0]) == (2835, 2835, 1)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".gif"])
def test_xmp_of_every_format_is_carried_byte_for_byte(tmp_path: Path, suffix: str) -> None:
  if suffix == ".png":
    content = _png((b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(PLAIN_XMP)))
  elif suffix == ".gif":
    buffer = io.BytesIO()
    SECRET.convert("P").save(buffer, "GIF", comment=b"drawn by hand")
    content = buffer.getvalue()
    trailer = b"\1" + bytes(range(255, -1, -1)) + b"\0"
    content = content[:-1] + b"!\xff\x0bXMP DataXMP" + PLAIN_XMP + trailer + content[-1:]
  else:
    buffer = io.BytesIO()
    kind = {".jpg": "JPEG", ".webp": "WEBP", ".tif": "TIFF"}[suffix]
    options = {"tiffinfo": {700: PLAIN_XMP}} if suffix == ".tif" else {"xmp": PLAIN_XMP}
    SECRET.save(buffer, kind, **options)
    content = buffer.getvalue()
  picture = _read(tmp_path, content, f"a{suffix}")
  chunks = _saved_chunks(tmp_path, picture)
  assert _xmp_of(chunks) == PLAIN_XMP
  assert picture.notes == ()
  if suffix == ".gif":
    assert b"Comment\0\0\0\0\0drawn by hand" in chunks[b"iTXt"]


def test_private_properties_of_xmp_are_cut_out_and_the_rest_stays(tmp_path: Path) -> None:
  spaces = (
    b' xmlns:e="http://ns.adobe.com/exif/1.0/" xmlns:aux="http://ns.adobe.com/exif/1.0/aux/"'
    b' xmlns:tiff="http://ns.adobe.com/tiff/1.0/"'
  )
  private = b' e:GPSLatitude="59,54N" aux:SerialNumber=\'4711\' tiff:Orientation="6"'
  element = b"<e:GPSLongitude>10,44E</e:GPSLongitude>"
  content = _png((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP % (spaces + private, element)))
  picture = _read(tmp_path, content, "a.png")
  assert _left_out(picture) == {"position", "serial", "orientation"}
  assert picture.pixels.shape == (16, 12, 3)
  found = _xmp_of(_saved_chunks(tmp_path, picture))
  assert found.split() == (XMP % (spaces, b"")).replace(spaces, spaces + b"   ").split()


PRIVATE = {
  "http://www.dji.com/drone-dji/1.0/": ("GpsLatitude", "GpsLongtitude", "DroneSerialNumber"),
  "http://ns.microsoft.com/photo/1.0/": ("CameraSerialNumber",),
  "http://ns.adobe.com/exif/1.0/": ("GPSImgDirection",),
  "http://ns.adobe.com/exif/1.0/aux/": ("OwnerName", "LensSerialNumber", "SerialNumber"),
  "urn:any": ("Place_latitude", "destLongitude", "cameraownername", "hdrMakerNote"),
}
PUBLIC = {
  "http://ns.useplus.org/ldf/xmp/1.0/": ("CopyrightOwnerName", "ImageCreatorName"),
  "http://ns.adobe.com/xap/1.0/rights/": ("Owner", "WebStatement"),
  "http://ns.adobe.com/photoshop/1.0/": ("Credit", "AuthorsPosition"),
}


@pytest.mark.parametrize("form", ["attributes", "elements"])
def test_private_names_are_known_in_every_namespace(tmp_path: Path, form: str) -> None:
  spaces, properties = "", ""
  for number, (space, names) in enumerate((PRIVATE | PUBLIC).items()):
    spaces += f' xmlns:n{number}="{space}"'
    for name in names:
      value = "SECRET" if space in PRIVATE else f"said by {name}"
      tag = f"n{number}:{name}"
      properties += f' {tag}="{value}"' if form == "attributes" else f"<{tag}>{value}</{tag}>"
  inside = (spaces + properties, "") if form == "attributes" else (spaces, properties)
  packet = XMP % tuple(text.encode() for text in inside)
  head = _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet)
  picture = _read(tmp_path, _with_segments(head))
  assert _left_out(picture) == {"position", "serial", "maker_note"}
  found = _xmp_of(_saved_chunks(tmp_path, picture))
  assert b"SECRET" not in found
  for names in PUBLIC.values():
    assert all(f"said by {name}".encode() in found for name in names)


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
  picture = _read(tmp_path, _png(*public, *private), "a.png")
  assert _left_out(picture) == {"position", "serial", "maker_note", "file_place"}
  kept = b"made at home\nby hand\n"
  assert list(picture.chunks[:3]) == public
  assert [containers.text_of(*chunk) for chunk in picture.chunks[3:]] == [
    (b"Description", kept), (b"Long", kept), (b"Comment", kept), (b"Other", kept),
  ]  # fmt: skip
  assert picture.chunks[5][1].startswith(b"Comment\0\0\0de\0Notiz\0")
  _saved_chunks(tmp_path, picture)


def test_comments_lose_private_lines_only(tmp_path: Path) -> None:
  comments = (b"GPSLatitude=52.5\nby An Artist", b"GPSLongitude=13.4")
  jpeg = _with_segments(*(_segment(0xFE, comment) for comment in comments))
  picture = _read(tmp_path, jpeg)
  assert _left_out(picture) == {"position"}
  assert picture.chunks[-1] == containers.text_chunk(b"Comment", b"by An Artist")
  assert not any(b"GPS" in data for _, data in picture.chunks)


def test_xmp_is_filtered_under_any_keyword(tmp_path: Path) -> None:
  space = b' xmlns:e="http://ns.adobe.com/exif/1.0/"'
  packet = XMP % (space + b' e:GPSLatitude="59,54N"', b"")
  for kind, data in (
    (b"iTXt", b"xmp\0\0\0\0\0" + packet),
    (b"tEXt", b"Comment\0" + packet),
  ):
    picture = _read(tmp_path, _png((kind, data)), "a.png")
    assert _left_out(picture) == {"position"}
    found = _xmp_of(_saved_chunks(tmp_path, picture))
    assert b"PROHIBITED" in found and b"GPS" not in found
  picture = _read(tmp_path, _with_segments(_segment(0xFE, packet)))
  assert _left_out(picture) == {"position"}
  # The standard keyword counts, and what another says differently is not lost in silence.
  standard = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + PLAIN_XMP)
  picture = _read(tmp_path, _png((kind, data), standard), "a.png")
  assert _left_out(picture) == {"second"}
  assert _xmp_of(_saved_chunks(tmp_path, picture)) == PLAIN_XMP


@pytest.mark.parametrize("place", ["EXIF", "XMP", "PNG text", "IPTC"])
def test_pictures_of_other_formats_are_previews_too(tmp_path: Path, place: str) -> None:
  buffer = io.BytesIO()
  SECRET.save(buffer, "WEBP")
  preview = buffer.getvalue()
  text = base64.b64encode(preview)
  if place == "EXIF":
    exif = Image.Exif()
    exif[0x013B], exif[0xFDE8] = "An Artist", preview
    content, expected = _with_segments(_segment(0xE1, exif.tobytes())), "embedded"
  elif place == "XMP":
    packet = XMP % (b"", b'<a:b xmlns:a="urn:any">' + text + b"</a:b>")
    head = _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet)
    content, expected = _with_segments(head), "xmp_preview"
  elif place == "PNG text":
    content, expected = _png((b"tEXt", b"Author\0An Artist"), (b"tEXt", b"b\0" + text)), "embedded"
  else:
    # One record of many: who made it goes along.
    records = b"\x1c\x02\x50\x00\x09An Artist"
    records += b"\x1c\x02\xf0" + struct.pack(">H", len(preview)) + preview
    block = b"Photoshop 3.0\0" + photoshop.resource(photoshop.IPTC, records)
    content, expected = _with_segments(_segment(0xED, block)), "iptc_preview"
  picture = _read(tmp_path, content, "a.png" if place == "PNG text" else "a.jpg")
  assert _left_out(picture) == {expected}
  chunks = _saved_chunks(tmp_path, picture)
  values = [value for kind, found in chunks.items() if kind != b"IDAT" for value in found]
  values += [zlib.decompress(value.partition(b"\0\0")[2]) for value in chunks.get(b"zTXt", [])]
  marks = (preview[:40], text[:40], preview.hex()[:70].encode())
  assert not any(mark in value for value in values for mark in marks)
  artist = b"An Artist"
  assert any(artist in value or artist.hex().encode() in value for value in values)


def test_extended_xmp_is_joined_to_the_main_one(tmp_path: Path) -> None:
  guid = b"0123456789ABCDEF0123456789ABCDEF"
  main = XMP % (b' xmlns:n="http://ns.adobe.com/xmp/note/" n:HasExtendedXMP="' + guid + b'"', b"")
  more = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-'
    b'ns#"><rdf:Description xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
    b' xmlns:q="urn:q" q:long="a long story"/></r:RDF></x:xmpmeta>'
  )
  name = b"http://ns.adobe.com/xmp/extension/\0" + guid
  parts = [
    _segment(0xE1, name + struct.pack(">II", len(more), at) + more[at : at + 100])
    for at in range(0, len(more), 100)
  ]
  head = _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + main)
  picture = _read(tmp_path, _with_segments(head, *reversed(parts)))
  found = _xmp_of(_saved_chunks(tmp_path, picture))
  assert b'q:long="a long story"' in found and b"PROHIBITED" in found
  assert b"HasExtended" not in found and picture.notes == ()
  lost = _read(tmp_path, _with_segments(head, *parts[1:]))
  assert _left_out(lost) == {"damaged_xmp"} and b"PROHIBITED" in _xmp_of(
    _saved_chunks(tmp_path, lost)
  )


def test_png_texts_colours_and_resolution_stay_as_they_are(tmp_path: Path) -> None:
  chunks = [
    (b"gAMA", struct.pack(">I", 100000)),
    (b"cHRM", bytes(range(32))),
    (b"pHYs", struct.pack(">IIB", 11811, 11811, 1)),
    (b"tIME", b"\x07\xe9\1\2\3\4\5"),
    (b"tEXt", b"Software\0by hand"),
    (b"zTXt", b"Description\0\0" + zlib.compress(b"long " * 100)),
    (b"iTXt", "Title\0\0\0de\0Titel\0Küste".encode()),
    (b"tEXt", b"Thumbnail\0/9j/4AAQSkZJRg=="),
    (b"prVW", b"a preview"),
    (b"iDOT", b"\0" * 28),
  ]
  picture = _read(tmp_path, _png(*chunks), "a.png")
  assert _left_out(picture) == {"embedded", "application"}
  saved = _saved_chunks(tmp_path, picture)
  for kind, data in chunks[:7]:
    assert data in saved[kind]
  assert set(saved) == {kind for kind, _ in chunks[:7]} | {b"IHDR", b"IDAT", b"IEND"}
  assert list(saved).index(b"gAMA") < list(saved).index(b"IDAT")


def test_iptc_of_png_profiles_and_tiff_tags_is_carried(tmp_path: Path) -> None:
  iptc = b"\x1c\x02\x74\x00\x0a(c) Artist" + b"\x1c\x02\x50\x00\x04Anna"
  wrapped = photoshop.resource(0x0404, iptc)
  for data in (iptc, wrapped):
    text = zlib.compress(photoshop.raw_profile("iptc", data))
    picture = _read(tmp_path, _png((b"zTXt", b"Raw profile type iptc\0\0" + text)), "a.png")
    saved = _saved_chunks(tmp_path, picture)[b"zTXt"][0].split(b"\0\0", 1)[1]
    assert photoshop.from_raw_profile(zlib.decompress(saved)) == wrapped
  SECRET.save(
    tmp_path / "a.tif",
    tiffinfo={33723: iptc, 315: "An Artist", 270: "a title"},
    dpi=(300, 300),
    icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
  )
  picture = images.read_image(tmp_path / "a.tif")
  assert picture.notes == () and picture.icc_profile
  chunks = _saved_chunks(tmp_path, picture)
  saved = zlib.decompress(chunks[b"zTXt"][0].split(b"\0\0", 1)[1])
  assert photoshop.from_raw_profile(saved) == wrapped
  assert struct.unpack(">IIB", chunks[b"pHYs"][0]) == (11811, 11811, 1)
  with Image.open(tmp_path / "saved.png") as image:
    exif = image.getexif()
    assert exif[315] == "An Artist" and exif[270] == "a title" and 256 not in exif
    assert image.info["icc_profile"] == picture.icc_profile


@pytest.mark.parametrize(
  "keyword", [b"Raw profile type exif", b"Raw Profile Type APP1", b"RAW PROFILE TYPE Exif "]
)
@pytest.mark.parametrize("prefix", [b"Exif\0\0", b""])
def test_exif_in_a_raw_profile_is_no_way_out(tmp_path: Path, keyword: bytes, prefix: bytes) -> None:
  block = prefix + _exif().removeprefix(b"Exif\0\0")
  text = zlib.compress(photoshop.raw_profile("exif", block))
  picture = _read(tmp_path, _png((b"zTXt", keyword + b"\0\0" + text)), "a.png")
  assert {"exif_preview", "position"} <= _left_out(picture)
  chunks = _saved_chunks(tmp_path, picture)
  _assert_no_preview(chunks)
  assert b"a title" in chunks[b"eXIf"][0]


def test_a_second_block_is_not_dropped_in_silence(tmp_path: Path) -> None:
  other = Image.Exif()
  other[0x8298] = "(c) Another"
  blocks = [_exif(), other.tobytes()]
  jpeg = _with_segments(*(_segment(0xE1, block) for block in blocks))
  png = _png(*((b"eXIf", block[6:]) for block in blocks))
  for content, name in ((jpeg, "a.jpg"), (png, "a.png")):
    assert "second" in _left_out(_read(tmp_path, content, name))
  # The same again is no loss, as ImageMagick writes it.
  raw = b"Raw profile type exif\0\0" + zlib.compress(photoshop.raw_profile("exif", blocks[0]))
  twice = _read(tmp_path, _png((b"eXIf", blocks[0][6:]), (b"zTXt", raw)), "a.png")
  assert "second" not in _left_out(twice)
  # A block in two segments is one.
  cut = len(blocks[0]) // 2
  parts = (blocks[0][:cut], b"Exif\0\0" + blocks[0][cut:])
  split = _read(tmp_path, _with_segments(*(_segment(0xE1, part) for part in parts)))
  assert "second" not in _left_out(split) and b"a title" in (split.exif or b"")


def _loop() -> bytes:
  """A directory whose EXIF pointer points at itself, and a table that says it is long."""
  entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
  return b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + b"\x08\0\0\0"


HOSTILE = {
  "bomb": (b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 50_000_000, 9)),
  "bomb in iTXt": (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b" " * 50_000_000, 9)),
  "bomb in iCCP": (b"iCCP", b"x\0\0" + zlib.compress(b" " * 50_000_000, 9)),
  "cut text": (b"zTXt", b"Comment\0\0" + zlib.compress(b"abc" * 999)[:-9]),
  "no keyword": (b"tEXt", b"\0nothing"),
  "wrong length": (b"gAMA", b"\0\0"),
  "loop": (b"eXIf", _loop()),
  "long table": (b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + b"\1" * 40),
  "huge count": (b"eXIf", b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHII", 270, 2, 2**32 - 1, 8)),
  "not exif": (b"eXIf", b"nonsense"),
  "document type": (
    b"iTXt",
    b'XML:com.adobe.xmp\0\0\0\0\0<!DOCTYPE a [<!ENTITY b "c">]>'
    + PLAIN_XMP[PLAIN_XMP.index(b"<x:") :],
  ),
  "deep": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<a>" * 100_000),
  "no xml": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<rdf:RDF>"),
  "spaces": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<a " + b" " * 1_000_000 + b"/>"),
  "long tag": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<a b='" + b" x>" * 300_000 + b"'/>"),
  "false profile": (b"tEXt", b"Raw profile type iptc\0\niptc\n 999\n00"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_damaged_metadata_costs_itself_and_not_the_picture(tmp_path: Path, name: str) -> None:
  started = time.monotonic()
  picture = _read(tmp_path, _png(HOSTILE[name], (b"tEXt", b"Title\0sound")), "a.png")
  assert time.monotonic() - started < 5
  np.testing.assert_array_equal(picture.pixels, np.asarray(SECRET))
  assert _left_out(picture) & {"damaged", "damaged_exif", "damaged_xmp", "oversized"}
  assert (b"tEXt", b"Title\0sound") in picture.chunks
  _saved_chunks(tmp_path, picture)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_mutated_files_never_crash_and_never_leak(tmp_path: Path) -> None:
  generator = np.random.default_rng(0)
  jpeg = _with_segments(
    _segment(0xE1, _exif(3)),
    _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + PLAIN_XMP),
    _segment(0xED, b"Photoshop 3.0\0" + photoshop.resource(0x040C, b"\0" * 28 + _jpeg())),
  )
  png = _png((b"eXIf", _exif()[6:]), HOSTILE["cut text"])
  buffer = io.BytesIO()
  SECRET.save(buffer, "TIFF", tiffinfo={700: PLAIN_XMP, 270: "t"}, dpi=(9, 9))
  for content, name, metadata_end in (
    (jpeg, "a.jpg", len(jpeg) - len(_jpeg())),
    (png, "a.png", 33 + len(_exif())),
    (buffer.getvalue(), "a.tif", len(buffer.getvalue())),
  ):
    for _ in range(60):
      mutated = bytearray(content)
      for at in generator.integers(2, metadata_end, generator.integers(1, 6)):
        mutated[at] = generator.integers(0, 256)
      try:
        picture = _read(tmp_path, bytes(mutated), name)
      except images.BadDataError:
        continue
      fields = {key: value for key, value in picture._asdict().items() if key != "notes"}
      saved = images.encode_png(**fields)
      assert _jpeg()[:200] not in saved
      images.read_image(_write(tmp_path / "saved.png", saved))


def _write(path: Path, content: bytes) -> Path:
  path.write_bytes(content)
  return path


def test_fill_bytes_and_long_comments_do_not_hang(tmp_path: Path) -> None:
  buffer = io.BytesIO()
  SECRET.convert("P").save(buffer, "GIF")
  gif = buffer.getvalue()
  comment = b"!\xfe" + b"\1a" * 1_200_000 + b"\0"
  started = time.monotonic()
  filled = _read(tmp_path, _jpeg()[:2] + b"\xff" * 3_000_000 + _jpeg()[2:])
  assert filled.notes == ()
  commented = _read(tmp_path, gif[:-1] + comment + gif[-1:], "a.gif")
  assert _left_out(commented) == {"oversized"}
  assert time.monotonic() - started < 5


def test_every_row_is_whole_and_every_reader_knows_it() -> None:
  for key, row in metadata.TABLE.items():
    assert row.fate in (metadata.KEPT, metadata.CONVERTED, metadata.DROPPED), key
    assert row.what and row.found and row.how
    assert "\n" not in metadata.note(key)
  for group in ("tags", "resources", "chunks", "properties"):
    values = [value for row in metadata.TABLE.values() for value in getattr(row, group)]
    assert len(values) == len(set(values)), group
  assert metadata.markdown().count("\n") == len(metadata.TABLE) + 1
