"""The table of metadata: what picture files can hold, and what the saved PNG keeps of it.

`TABLE` alone decides: each row keeps, converts or drops one thing, and the readers (`exif`, `xmp`,
`photoshop`, `containers`) look up there what they find. A dropped or converted thing becomes a note
on the picture, in the words of its row. `python -m udp_jax.data.metadata` prints the table.

The rows follow two rules. An embedded preview shows the clean picture, so previews, and everything
that may hide one, are dropped. Position and serial numbers reveal where and by whom a picture was
taken, so they are dropped; statements of rights (artist, copyright, "no AI training") are kept.
"""

from __future__ import annotations

import re
from typing import NamedTuple

KEPT, CONVERTED, DROPPED = "kept", "converted", "dropped"

# Larger pieces of metadata are dropped; PNG readers commonly refuse compressed ones over 1 MiB.
MAX_BYTES = 16 << 20
MAX_COMPRESSED = 1 << 20
MAX_TEXTS = 1000

_TIFF = "http://ns.adobe.com/tiff/1.0/"
_XMP = "http://ns.adobe.com/xap/1.0/"
_XMP_NOTE = "http://ns.adobe.com/xmp/note/"
_GOOGLE = "http://ns.google.com/photos/1.0/"


class MetadataKind(NamedTuple):
  """A kind of metadata: one thing that a picture file can carry.

  Attributes:
    what: name of the thing in notes.
    found: the file kinds and places that hold it.
    fate: KEPT, CONVERTED or DROPPED.
    how: where the saved file holds it, what it becomes, or why it is dropped.
    tags: its EXIF and TIFF tags.
    resources: numbers of its Photoshop resources.
    properties: (namespace, name) of its XMP properties; the name "*" means the whole namespace.
    names: regular expression for its names, wherever a name stands by a value: XMP properties of
      any namespace, keywords of PNG texts, lines "name=value" in texts and comments. It is matched
      against the lower-case letters, digits and colons of a name.
    chunks: types of its PNG chunks.
    said: whether dropping or converting it is worth a note.
  """

  what: str
  found: str
  fate: str
  how: str
  tags: frozenset[int] = frozenset()
  resources: frozenset[int] = frozenset()
  properties: frozenset[tuple[str, str]] = frozenset()
  names: str = ""
  chunks: frozenset[bytes] = frozenset()
  said: bool = True


def _tags(*tags: int) -> frozenset[int]:
  return frozenset(tags)


_CLEAN = "it shows the clean picture"

TABLE: dict[str, MetadataKind] = {
  # Colours and size.
  "icc": MetadataKind(
    "ICC profile of RGB or grey",
    "PNG iCCP, JPEG APP2, WebP ICCP, TIFF 34675, GIF, BMP",
    KEPT,
    "iCCP, byte for byte",
    tags=_tags(34675),
    resources=frozenset({0x040F}),
  ),
  "icc_other": MetadataKind(
    "ICC profile of CMYK or LAB", "JPEG, TIFF", CONVERTED, "pixels converted to sRGB by it"
  ),
  "icc_unfit": MetadataKind(
    "ICC profile of another colour space", "any", DROPPED, "it does not fit the picture's channels"
  ),
  "colour": MetadataKind(
    "PNG colour chunks",
    "PNG",
    KEPT,
    "as they are",
    chunks=frozenset({b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI"}),
  ),
  "density": MetadataKind(
    "resolution (dpi)",
    "PNG pHYs, JFIF, TIFF 282, 283 and 296, BMP, Photoshop 0x03ED",
    KEPT,
    "pHYs, and the tags in EXIF",
    chunks=frozenset({b"pHYs"}),
    resources=frozenset({0x03ED}),
  ),
  "orientation": MetadataKind(
    "orientation",
    "EXIF and TIFF 0x0112, XMP tiff:Orientation",
    CONVERTED,
    "applied to the pixels",
    tags=_tags(0x0112),
    properties=frozenset({(_TIFF, "Orientation")}),
  ),
  # Texts and rights.
  "exif": MetadataKind(
    "EXIF: camera settings, times, descriptions, user comment, artist, copyright",
    "JPEG APP1, PNG eXIf and raw profiles, WebP EXIF, TIFF tags",
    KEPT,
    "eXIf; every value as it was",
    chunks=frozenset({b"eXIf"}),
  ),
  "xmp": MetadataKind(
    "XMP: descriptions, rights, statements such as PLUS data mining (no AI training)",
    "JPEG APP1 with its extension, PNG iTXt, WebP XMP, TIFF 700, GIF",
    KEPT,
    "iTXt XML:com.adobe.xmp; byte for byte where nothing of it is dropped",
    tags=_tags(700),
    resources=frozenset({0x0424}),
  ),
  "xmp_extended": MetadataKind(
    "reference to extended XMP",
    "JPEG",
    CONVERTED,
    "the extension is joined to the main XMP",
    properties=frozenset({(_XMP_NOTE, "HasExtendedXMP")}),
    said=False,
  ),
  "iptc": MetadataKind(
    "IPTC, Photoshop's copyright flag and address",
    "JPEG APP13, TIFF 33723 and 34377, PNG raw profiles",
    KEPT,
    "zTXt 'Raw profile type iptc', every record as it was",
    tags=_tags(33723, 34377),
    resources=frozenset({0x0404, 0x0425, 0x040A, 0x040B}),
  ),
  "texts": MetadataKind(
    "PNG texts", "PNG tEXt, zTXt, iTXt", KEPT, "as they are",
    chunks=frozenset({b"tEXt", b"zTXt", b"iTXt"}),
  ),
  "comments": MetadataKind("comment", "JPEG COM, GIF", KEPT, "iTXt Comment"),
  "time": MetadataKind(
    "time of the last change", "PNG tIME", KEPT, "as it is", chunks=frozenset({b"tIME"})
  ),
  "captions": MetadataKind(
    "captions beside the picture",
    "metadata.jsonl, metadata.csv, .txt, .caption",
    KEPT,
    "beside the saved pictures, with their new names",
  ),
  # Previews.
  "exif_preview": MetadataKind(
    "EXIF preview",
    "EXIF's second directory, tags 0x5011 to 0x5033",
    DROPPED,
    _CLEAN,
    tags=frozenset(range(0x5011, 0x5034)),
  ),
  "maker_note": MetadataKind(
    "maker note",
    "EXIF 0x927C, DNG 0xC634, texts named so",
    DROPPED,
    "it may hold a preview of the clean picture and serial numbers",
    tags=_tags(0x927C, 0xC634),
    names="makernote",
  ),
  "jfif_preview": MetadataKind("JFIF preview", "JPEG APP0", DROPPED, _CLEAN),
  "photoshop_preview": MetadataKind(
    "Photoshop preview",
    "JPEG APP13, TIFF 34377",
    DROPPED,
    _CLEAN,
    resources=frozenset({0x0409, 0x040C}),
  ),
  "xmp_preview": MetadataKind(
    "XMP preview",
    "XMP xmp:Thumbnails, xmpGImg, Google's image, depth and audio data",
    DROPPED,
    _CLEAN,
    properties=frozenset({
      (_XMP, "Thumbnails"),
      ("http://ns.adobe.com/xap/1.0/g/img/", "*"),
      (f"{_GOOGLE}image/", "*"),
      (f"{_GOOGLE}depthmap/", "*"),
      (f"{_GOOGLE}audio/", "*"),
    }),
  ),
  "iptc_preview": MetadataKind(
    "IPTC preview", "IPTC 2:200 to 2:202, records 7 to 9", DROPPED, _CLEAN
  ),
  "second_picture": MetadataKind(
    "second picture or data after the picture's end",
    "JPEG MPF (MPO), motion photos, anything after the end of a file",
    DROPPED,
    "it may show the clean picture",
  ),
  "embedded": MetadataKind(
    "value that holds a picture",
    "any text or tag, as it is, in base64 or hexadecimal",
    DROPPED,
    "it may show the clean picture",
  ),
  "second": MetadataKind(
    "further EXIF or XMP", "any", DROPPED, "a file has one, and the first in its place counts"
  ),
  "flashpix": MetadataKind("FlashPix data", "JPEG APP2", DROPPED, "it may hold a preview"),
  "application": MetadataKind(
    "application data",
    "other JPEG segments, other PNG and WebP chunks",
    DROPPED,
    "its meaning is not known, and it may hold a preview",
    chunks=frozenset({b"prVW", b"mkBF", b"mkTS", b"mkBS", b"mkBT"}),
  ),
  "photoshop": MetadataKind(
    "Photoshop's settings",
    "JPEG APP13, TIFF 34377 and 37724: guides, paths, print settings, layers",
    DROPPED,
    "they are of the file that was edited",
    tags=_tags(37724),
  ),
  # Private data.
  "position": MetadataKind(
    "GPS position",
    "EXIF 0x8825; GPS..., latitude and longitude in XMP, PNG texts and comments",
    DROPPED,
    "it tells where the picture was made",
    tags=_tags(0x8825),
    # DJI's drones write "longtitude".
    names="(?<![a-z0-9])gps|latitude|longt?itude",
  ),
  "serial": MetadataKind(
    "owner's name or serial numbers of camera and lens",
    "EXIF 0xA430, 0xA431, 0xA435, DNG 0xC62F; so named in XMP, PNG texts and comments",
    DROPPED,
    "they tell whose camera it was",
    tags=_tags(0xA430, 0xA431, 0xA435, 0xC62F),
    # The owner of a copyright is kept.
    names="serialnumber$|(?<!right)(?<!rights)ownername$",
  ),
  "file_place": MetadataKind(
    "address of a file on a disk",
    "PNG texts Thumb::..., texts that are a file:// address",
    DROPPED,
    "it names a person's folders",
    names="^thumb::",
  ),
  # Facts about the old file that do not hold for the new one.
  "credentials": MetadataKind(
    "content credentials (C2PA)",
    "JPEG APP11, PNG caBX, WebP C2PA, TIFF 52545",
    DROPPED,
    "they sign the bytes of the original file",
    tags=_tags(52545),
    chunks=frozenset({b"caBX"}),
  ),
  "background": MetadataKind(
    "background colour", "PNG bKGD", DROPPED, "the picture itself covers it",
    chunks=frozenset({b"bKGD"}), said=False,
  ),
  "layout": MetadataKind(
    "how pixels are stored",
    "TIFF and EXIF tags of strips, tiles and samples; PNG sBIT, hIST, sPLT, iDOT",
    DROPPED,
    "the saved file stores its pixels in its own way",
    tags=frozenset({
      *(254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284),
      *(288, 289, 290, 291, 292, 293, 301, 317, 318, 319, 320, 321, 322, 323, 324, 325, 330, 332),
      *(333, 334, 336, 338, 339, 340, 341, 342, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521),
      *(529, 530, 531, 532, 0xEA1C, 0xEA1D),
    }),
    chunks=frozenset({b"sBIT", b"hIST", b"sPLT", b"iDOT"}),
    said=False,
  ),
  "damaged_exif": MetadataKind(
    "damaged EXIF", "any", DROPPED, "what cannot be read of it stays behind"
  ),
  "damaged_xmp": MetadataKind("damaged XMP", "any", DROPPED, "it is no XML, or hides a picture"),
  "damaged": MetadataKind("damaged metadata", "any", DROPPED, "it cannot be read"),
  "oversized": MetadataKind(
    "metadata over its limit", "any", DROPPED,
    f"a text may have {MAX_COMPRESSED >> 20} MiB, other metadata {MAX_BYTES >> 20} MiB",
  ),
}  # fmt: skip


def note(key: str) -> str:
  """Returns the note for a dropped or converted row: the thing and its fate.

  >>> note(next(iter(TABLE)))
  'ICC profile of RGB or grey iCCP, byte for byte'
  """
  row = TABLE[key]
  return f"{row.what} left out: {row.how}" if row.fate == DROPPED else f"{row.what} {row.how}"


def _by(field: str) -> dict:
  return {value: key for key, row in TABLE.items() for value in getattr(row, field)}


BY_TAG: dict[int, str] = _by("tags")
BY_RESOURCE: dict[int, str] = _by("resources")
BY_CHUNK: dict[bytes, str] = _by("chunks")
_BY_PROPERTY: dict[tuple[str, str], str] = _by("properties")


NAMES = "|".join(f"(?P<{key}>{row.names})" for key, row in TABLE.items() if row.names)
_BY_NAME = re.compile(NAMES)
_NO_NAME = bytes(set(range(256)) - set(b"abcdefghijklmnopqrstuvwxyz0123456789:"))


def bare(text: str) -> str:
  """Keeps only the lower-cased letters, digits and colons of a text.

  >>> bare("GPS Latitude!")
  'gpslatitude'
  """
  return text.lower().encode("ascii", "ignore").translate(None, _NO_NAME).decode()


def of_name(name: str) -> str | None:
  """Returns the key of the row whose name pattern matches `name`, or None.

  >>> of_name("nothing of the kind") is None
  True
  """
  match = _BY_NAME.search(bare(name))
  return match.lastgroup if match else None


def of_property(namespace: str, name: str) -> str | None:
  """Returns the key of the row for an XMP property, or None.

  >>> of_property("http://example.org/", "nothing") is None
  True
  """
  for candidate in (name, "*"):
    if key := _BY_PROPERTY.get((namespace, candidate)):
      return key
  return of_name(name)


def markdown() -> str:
  """Returns the table as Markdown.

  >>> markdown().startswith("|")
  True
  """
  lines = ["| what | where it is found | fate | how, or why |", "|---|---|---|---|"]
  lines += [f"| {r.what} | {r.found} | {r.fate} | {r.how} |" for r in TABLE.values()]
  return "\n".join(lines)


if __name__ == "__main__":
  print(markdown())
