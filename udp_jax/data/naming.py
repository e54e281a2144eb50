"""Names of pictures: unique in every file system, writable as text, and safe to print.

A name is a path below a folder, with "/" and without extension; the saved file is `<name>.png`.
All readers of folders (sources, `verify`, masks, captions) take names from this module, so that
files of one folder can be matched with those of another. Reading a folder written with these names
gives the same names again.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import unicodedata
from collections.abc import Sequence
from pathlib import PurePath, PurePosixPath
from typing import Any

# File kinds and their extensions. Only these decoders run: some of Pillow's others start external
# programs.
FORMATS = {
  "PNG": (".png", ".apng"),
  "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
  "MPO": (".mpo", ".jpg", ".jpeg"),
  "WEBP": (".webp",),
  "BMP": (".bmp", ".dib"),
  "TIFF": (".tif", ".tiff"),
  "GIF": (".gif",),
}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)


NOT_UTF8 = "file name is not UTF-8: its bytes are written as %XX"

# Limits of a name's last part, in bytes. File systems commonly allow 255, extensions included.
_LONGEST, _KEPT = 240, 200
# Files that runs write among pictures; no folder there may have these names.
RESERVED = frozenset({"manifest.json", "metadata.jsonl", "metadata.csv"})
# Characters that move the cursor, end a line, or change the direction of text.
_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
_TURNING = frozenset(map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]))


def readable(path: str) -> str:
  """Returns `path` as text that can be written anywhere: bytes that are not UTF-8 become %XX.

  >>> readable("caf\\udce9.png")
  'caf%E9.png'
  """
  if path.isascii():
    return path
  return "".join(_percent(c) if unicodedata.category(c) == "Cs" else c for c in path)


def _percent(surrogate: str) -> str:
  number = ord(surrogate)
  # Python represents undecodable bytes by these surrogates.
  return f"%{number - 0xDC00:02X}" if 0xDC80 <= number <= 0xDCFF else f"%{number:04X}"


def printable(text: str) -> str:
  """Returns `text` on one line, with control characters and undecodable bytes escaped.

  >>> printable("a\\nb")
  'a\\\\nb'
  """
  return "".join(
    c.encode("unicode_escape").decode()
    if unicodedata.category(c) in _UNPRINTABLE or c in _TURNING
    else c
    for c in text
  )


def composed(name: str) -> str:
  """Normalises a name for comparison, as file systems store accents differently.

  >>> composed("cafe\\u0301") == composed("caf\\u00e9")
  True
  """
  return unicodedata.normalize("NFC", name)


def unique_names(relatives: Sequence[str]) -> list[str]:
  """Returns a name for each of the sorted file paths below a folder.

  A file is named without its extension if possible: `a.jpg` is "a". If two files would get the same
  name, a PNG file keeps it, because its file name then stays the same, and other files keep their
  extension: beside `a.png`, `a.jpg` is named "a.jpg" and saved as `a.jpg.png`. The same holds for a
  file whose name would clash with a folder (`a.jpg` beside the folder `a.png`). A folder named like
  a file that runs write gets a number: `manifest.json/a.png` is "manifest.json-2/a". Names that
  differ only in case or in the encoding of accents count as equal, as in some file systems. Very
  long names are cut and end in a part of their hash.

  >>> unique_names(["a.jpg", "a.png", "b.png"])
  ['a.jpg', 'a', 'b']
  """
  relatives = _beside_reserved(relatives)
  taken = {
    _key(str(parent)) for relative in relatives for parent in PurePosixPath(relative).parents
  }
  names: dict[int, str] = {}
  suffixes = [PurePosixPath(relative).suffix for relative in relatives]

  def order(index: int) -> tuple[bool, bool, int]:
    return suffixes[index] != ".png", suffixes[index].lower() != ".png", index

  for index in sorted(range(len(relatives)), key=order):
    relative = relatives[index]
    stem = relative[: len(relative) - len(suffixes[index])]
    copies = (f"{relative}-{copy}" for copy in itertools.count(2))
    for candidate in itertools.chain((stem, relative), copies):
      name = _shortened(candidate)
      if _key(f"{name}.png") not in taken:
        break
    taken.add(_key(f"{name}.png"))
    names[index] = name
  return [names[index] for index in range(len(relatives))]


def _beside_reserved(relatives: Sequence[str]) -> list[str]:
  """Renames folders whose names are reserved for files that runs write."""
  folders = {str(parent) for relative in relatives for parent in PurePosixPath(relative).parents}
  taken = {_key(folder) for folder in folders}
  renamed: dict[str, str] = {}
  for folder in sorted(folders, key=lambda folder: (folder.count("/"), folder)):
    parent, slash, last = folder.rpartition("/")
    there = renamed.get(parent, parent) + slash
    renamed[folder] = there + last
    if _key(last) in RESERVED:
      copies = (f"{there}{last}-{copy}" for copy in itertools.count(2))
      renamed[folder] = next(name for name in copies if _key(name) not in taken)
      taken.add(_key(renamed[folder]))
  made = []
  for relative in relatives:
    parent, slash, last = relative.rpartition("/")
    made.append(renamed.get(parent, parent) + slash + last)
  return made


def _key(name: str) -> str:
  return composed(composed(name).casefold())


def _shortened(name: str) -> str:
  folder, slash, last = name.rpartition("/")
  raw = last.encode()
  if len(raw) <= _LONGEST:
    return name
  digest = hashlib.sha256(raw).hexdigest()[:8]
  return f"{folder}{slash}{raw[:_KEPT].decode('utf-8', 'ignore')}~{digest}"


def is_safe_name(name: Any) -> bool:
  """Returns whether a relative posix name stays below its folder and is not hidden.

  >>> is_safe_name("cat/1"), is_safe_name("../1")
  (True, False)
  """
  if not isinstance(name, str) or "\0" in name or PurePath(name).drive:
    return False
  if os.sep == "\\" and "\\" in name:
    return False
  return not any(part == "" or part.startswith(".") for part in name.split("/"))
