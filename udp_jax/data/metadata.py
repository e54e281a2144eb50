"""What a picture file carries besides its pixels, and what becomes of it in the PNG that is saved.

`TABLE` is the one place that decides: a row for each thing says whether it is kept, converted or
dropped, and the readers (`exif`, `xmp`, `photoshop`, `containers`) look up there what they meet.
Whatever is dropped or converted becomes a note on the picture, in the words of its row.
`python -m udp_jax.data.metadata` prints the table.

Two rules stand behind the rows. An embedded preview shows the clean picture, so none ever leaves,
and neither does what may hide one. Position and serial numbers tell where and by whom a picture was
taken, so they stay at home; what says whose the work is (artist, copyright, "no AI training") goes
along.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from udp_jax.data import picture_marks

KEPT, CONVERTED, DROPPED = "kept", "converted", "dropped"

# Larger pieces of metadata are left out; PNG readers commonly refuse compressed ones over 1 MiB.
MAX_BYTES = 16 << 20
MAX_COMPRESSED = 1 << 20
MAX_TEXTS = 1000

_TIFF = "http://ns.adobe.com/tiff/1.0/"
_XMP = "http://ns.adobe.com/xap/1.0/"
_XMP_NOTE = "http://ns.adobe.com/xmp/note/"
_GOOGLE = "http://ns.google.com/photos/1.0/"


class Row(NamedTuple):
  """One thing that a picture file can carry.

  Attributes:
    what: its name in notes.
    found: in which files, and where.
    fate: KEPT, CONVERTED or DROPPED.
    how: where it stands in the saved file, what it becomes, or why it is dropped.
    tags: EXIF and TIFF tags that are it.
    resources: numbers of Photoshop resources that are it.
    properties: (namespace, name) of XMP properties that are it; the name "*" means all of the
      namespace.
    names: a regular expression for names that are it wherever a name stands by a value: XMP
      properties of any namespace, keywords of PNG texts, lines "name=value" of texts and comments.
      It is searched in the name's small letters, digits and colons.
    chunks: types of PNG chunks that are it.
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

TABLE: dict[str, Row] = {
  # Colours and size.
  "icc": Row(
    "ICC profile of RGB or grey",
    "PNG iCCP, JPEG APP2, WebP ICCP, TIFF 34675, GIF, BMP",
    KEPT,
    "iCCP, byte for byte",
    tags=_tags(34675),
    resources=frozenset({0x040F}),
  ),
  "icc_other": Row(
    "ICC profile of CMYK or LAB", "JPEG, TIFF", CONVERTED, "pixels converted to sRGB by it"
  ),
  "icc_unfit": Row(
    "ICC profile of another colour space", "any", DROPPED, "it does not fit the picture's channels"
  ),
  "colour": Row(
    "PNG colour chunks",
    "PNG",
    KEPT,
    "as they are",
    chunks=frozenset({b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI"}),
  ),
  "density": Row(
    "resolution (dpi)",
    "PNG pHYs, JFIF, TIFF 282, 283 and 296, BMP, Photoshop 0x03ED",
    KEPT,
    "pHYs, and the tags in EXIF",
    chunks=frozenset({b"pHYs"}),
    resources=frozenset({0x03ED}),
  ),
  "orientation": Row(
    "orientation",
    "EXIF and TIFF 0x0112, XMP tiff:Orientation",
    CONVERTED,
    "applied to the pixels",
    tags=_tags(0x0112),
    properties=frozenset({(_TIFF, "Orientation")}),
  ),
  # Texts and rights.
  "exif": Row(
    "EXIF: camera settings, times, descriptions, user comment, artist, copyright",
    "JPEG APP1, PNG eXIf and raw profiles, WebP EXIF, TIFF tags",
    KEPT,
    "eXIf; every value as it was",
    chunks=frozenset({b"eXIf"}),
  ),
  "xmp": Row(
    "XMP: descriptions, rights, statements such as PLUS data mining (no AI training)",
    "JPEG APP1 with its extension, PNG iTXt, WebP XMP, TIFF 700, GIF",
    KEPT,
    "iTXt XML:com.adobe.xmp; byte for byte where nothing of it is dropped",
    tags=_tags(700),
    resources=frozenset({0x0424}),
  ),
  "xmp_extended": Row(
    "reference to extended XMP",
    "JPEG",
    CONVERTED,
    "the extension is joined to the main XMP",
    properties=frozenset({(_XMP_NOTE, "HasExtendedXMP")}),
    said=False,
  ),
  "iptc": Row(
    "IPTC, Photoshop's copyright flag and address",
    "JPEG APP13, TIFF 33723 and 34377, PNG raw profiles",
    KEPT,
    "zTXt 'Raw profile type iptc', every record as it was",
    tags=_tags(33723, 34377),
    resources=frozenset({0x0404, 0x0425, 0x040A, 0x040B}),
  ),
  "texts": Row(
    "PNG texts", "PNG tEXt, zTXt, iTXt", KEPT, "as they are",
    chunks=frozenset({b"tEXt", b"zTXt", b"iTXt"}),
  ),
  "comments": Row("comment", "JPEG COM, GIF", KEPT, "iTXt Comment"),
  "time": Row(
    "time of the last change", "PNG tIME", KEPT, "as it is", chunks=frozenset({b"tIME"})
  ),
  "captions": Row(
    "captions beside the picture",
    "metadata.jsonl, metadata.csv, .txt, .caption",
    KEPT,
    "beside the saved pictures, with their new names",
  ),
  # Previews.
  "exif_preview": Row(
    "EXIF preview",
    "EXIF's second directory, tags 0x5011 to 0x5033",
    DROPPED,
    _CLEAN,
    tags=frozenset(range(0x5011, 0x5034)),
  ),
  "maker_note": Row(
    "maker note",
    "EXIF 0x927C, DNG 0xC634, texts named so",
    DROPPED,
    "it may hold a preview of the clean picture and serial numbers",
    tags=_tags(0x927C, 0xC634),
    names="makernote",
  ),
  "jfif_preview": Row("JFIF preview", "JPEG APP0", DROPPED, _CLEAN),
  "photoshop_preview": Row(
    "Photoshop preview",
    "JPEG APP13, TIFF 34377",
    DROPPED,
    _CLEAN,
    resources=frozenset({0x0409, 0x040C}),
  ),
  "xmp_preview": Row(
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
  "iptc_preview": Row("IPTC preview", "IPTC 2:200 to 2:202, records 7 to 9", DROPPED, _CLEAN),
  "second_picture": Row(
    "second picture or data after the picture's end",
    "JPEG MPF (MPO), motion photos, anything after the end of a file",
    DROPPED,
    "it may show the clean picture",
  ),
  "embedded": Row(
    "value that holds a picture",
    "any text or tag, as it is, in base64 or hexadecimal",
    DROPPED,
    "it may show the clean picture",
  ),
  "second": Row(
    "further EXIF or XMP", "any", DROPPED, "a file has one, and the first in its place counts"
  ),
  "flashpix": Row("FlashPix data", "JPEG APP2", DROPPED, "it may hold a preview"),
  "application": Row(
    "application data",
    "other JPEG segments, other PNG and WebP chunks",
    DROPPED,
    "its meaning is not known, and it may hold a preview",
    chunks=frozenset({b"prVW", b"mkBF", b"mkTS", b"mkBS", b"mkBT"}),
  ),
  "photoshop": Row(
    "Photoshop's settings",
    "JPEG APP13, TIFF 34377 and 37724: guides, paths, print settings, layers",
    DROPPED,
    "they are of the file that was edited",
    tags=_tags(37724),
  ),
  # Private things.
  "position": Row(
    "GPS position",
    "EXIF 0x8825; GPS..., latitude and longitude in XMP, PNG texts and comments",
    DROPPED,
    "it tells where the picture was made",
    tags=_tags(0x8825),
    # Longtitude: so DJI's drones write it.
    names="(?<![a-z0-9])gps|latitude|longt?itude",
  ),
  "serial": Row(
    "owner's name or serial numbers of camera and lens",
    "EXIF 0xA430, 0xA431, 0xA435, DNG 0xC62F; so named in XMP, PNG texts and comments",
    DROPPED,
    "they tell whose camera it was",
    tags=_tags(0xA430, 0xA431, 0xA435, 0xC62F),
    # The owner of a copyright stays.
    names="serialnumber$|(?<!right)(?<!rights)ownername$",
  ),
  "file_place": Row(
    "address of a file on a disk",
    "PNG texts Thumb::..., texts that are a file:// address",
    DROPPED,
    "it names a person's folders",
    names="^thumb::",
  ),
  # What is true of the old file only.
  "credentials": Row(
    "content credentials (C2PA)",
    "JPEG APP11, PNG caBX, WebP C2PA, TIFF 52545",
    DROPPED,
    "they sign the bytes of the original file",
    tags=_tags(52545),
    chunks=frozenset({b"caBX"}),
  ),
  "background": Row(
    "background colour", "PNG bKGD", DROPPED, "the picture itself covers it",
    chunks=frozenset({b"bKGD"}), said=False,
  ),
  "layout": Row(
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
  "damaged_exif": Row(
    "damaged EXIF", "any", DROPPED, "what cannot be read of it stays behind"
  ),
  "damaged_xmp": Row("damaged XMP", "any", DROPPED, "it is no XML, or hides a picture"),
  "damaged": Row("damaged metadata", "any", DROPPED, "it cannot be read"),
  "oversized": Row(
    "metadata over its limit", "any", DROPPED,
    f"a text may have {MAX_COMPRESSED >> 20} MiB, other metadata {MAX_BYTES >> 20} MiB",
  ),
}  # fmt: skip


def note(key: str) -> str:
  """The note of a row that is dropped or converted: what, and what became of it."""
  row = TABLE[key]
  return f"{row.what} left out: {row.how}" if row.fate == DROPPED else f"{row.what} {row.how}"


def _by(field: str) -> dict:
  return {value: key for key, row in TABLE.items() for value in getattr(row, field)}


BY_TAG: dict[int, str] = _by("tags")
BY_RESOURCE: dict[int, str] = _by("resources")
BY_CHUNK: dict[bytes, str] = _by("chunks")
_BY_PROPERTY: dict[tuple[str, str], str] = _by("properties")


_NAMES = "|".join(f"(?P<{key}>{row.names})" for key, row in TABLE.items() if row.names)
_BY_NAME = re.compile(_NAMES)
# Finds a name anywhere in a line, so that most lines need no closer look.
_IN_LINE = re.compile(re.sub(r"\(\?<!\[a-z0-9\]\)|\^|\$", "", _NAMES))
_NO_NAME = bytes(set(range(256)) - set(b"abcdefghijklmnopqrstuvwxyz0123456789:"))
# Longer texts are not taken apart: what has a private name somewhere is dropped whole.
_MAX_LINES = 1 << 20
# Names in texts: all that stands before the mark, such as "GPS Position : 1", and single words.
_PARTS = re.compile("[;,|{}]")
_PART_NAME = re.compile(r"\W{0,20}([a-z][\w .\-]{0,60}?)[\"']?[ \t]*[=:]")
_WORD_NAME = re.compile(r"(?<![\w.\-])([a-z][\w.\-]*+)[\"']?[ \t]*[=:]")


def _bare(text: str) -> str:
  """Small letters, digits and colons of a text."""
  return text.lower().encode("ascii", "ignore").translate(None, _NO_NAME).decode()


def of_name(name: str) -> str | None:
  """The key of the row that a name belongs to, whatever it stands in, if it has one of its own."""
  match = _BY_NAME.search(_bare(name))
  return match.lastgroup if match else None


def of_property(namespace: str, name: str) -> str | None:
  """The key of the row that an XMP property belongs to, if it has one of its own."""
  for candidate in (name, "*"):
    if key := _BY_PROPERTY.get((namespace, candidate)):
      return key
  return of_name(name)


def of_text(name: str, text: str) -> tuple[str, tuple[str, ...]]:
  """What is kept of a text under a name: all but its private lines; and keys of what is not."""
  key = of_name(name) or ("file_place" if text.lstrip().lower().startswith("file://") else None)
  if key is None and holds_picture(f"{name} {text}".encode("utf-8", "surrogatepass")):
    key = "embedded"
  if key is not None:
    return "", (key,)
  somewhere = _IN_LINE.search(_bare(text))
  if somewhere is None:
    return text, ()
  if len(text) > _MAX_LINES:
    return "", (somewhere.lastgroup or "",)
  kept, dropped = [], []
  for line in text.splitlines(keepends=True):
    key = _of_line(line.lower())
    if key is None:
      kept.append(line)
    else:
      dropped.append(key)
  return ("".join(kept) if dropped else text), tuple(dict.fromkeys(dropped))


def _of_line(line: str) -> str | None:
  if not _IN_LINE.search(_bare(line)):
    return None
  names = [match.group(1) for part in _PARTS.split(line) if (match := _PART_NAME.match(part))]
  return next((key for name in names + _WORD_NAME.findall(line) if (key := of_name(name))), None)


def holds_picture(value: bytes) -> bool:
  """Whether a picture begins somewhere in a value, as it is, in base64 or in hexadecimal."""
  return picture_marks.found(value)


def markdown() -> str:
  """The table for people."""
  lines = ["| what | where it is found | fate | how, or why |", "|---|---|---|---|"]
  lines += [f"| {r.what} | {r.found} | {r.fate} | {r.how} |" for r in TABLE.values()]
  return "\n".join(lines)


if __name__ == "__main__":
  print(markdown())
