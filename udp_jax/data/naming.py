"""Names of pictures: unique in every file system, writable as text, and safe to print.

A name is a path below a folder, with "/" and without extension; the saved file is `<name>.png`.
Every reader of a folder (sources, `verify`, masks, captions) takes its names from here, so that the
files of one folder find those of another. A folder that was written by these names gives the same
names when it is read.
"""

from __future__ import annotations

import hashlib
import itertools
import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath

NOT_UTF8 = "file name is not UTF-8: its bytes are written as %XX"

# Bytes of a name's last part. File systems commonly allow 255, extensions included.
_LONGEST, _KEPT = 240, 200
# Files that runs write among pictures: no folder there can have their names.
RESERVED = frozenset({"manifest.json", "metadata.jsonl", "metadata.csv"})
# What moves the cursor, ends a line, or turns the direction of text.
_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
_TURNING = frozenset(map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]))


def readable(path: str) -> str:
  """`path` as text that can be written anywhere: bytes that are no UTF-8 become %XX."""
  if path.isascii():
    return path
  return "".join(_percent(c) if unicodedata.category(c) == "Cs" else c for c in path)


def _percent(surrogate: str) -> str:
  number = ord(surrogate)
  # Python keeps a byte that it cannot decode as one of these.
  return f"%{number - 0xDC00:02X}" if 0xDC80 <= number <= 0xDCFF else f"%{number:04X}"


def printable(text: str) -> str:
  """`text` on one line: control characters, and bytes that are no UTF-8, as escapes."""
  return "".join(
    c.encode("unicode_escape").decode()
    if unicodedata.category(c) in _UNPRINTABLE or c in _TURNING
    else c
    for c in text
  )


def composed(name: str) -> str:
  """The form in which names are compared: file systems differ in how they store accents."""
  return unicodedata.normalize("NFC", name)


def unique_names(relatives: Sequence[str]) -> list[str]:
  """A name for each of the sorted paths of files below a folder.

  A file is named without its extension where it can be: `a.jpg` is "a". Where two files would get
  one name, PNG files keep it, as theirs does not change then, and the others are named with their
  extension: beside `a.png`, `a.jpg` is "a.jpg" and is saved as `a.jpg.png`. So is a file whose name
  would be that of a folder (`a.jpg` beside the folder `a.png`). A folder with the name of a file
  that runs write among pictures gets a number: `manifest.json/a.png` is "manifest.json-2/a". Names
  that differ only in case or in how accents are stored count as one, as some file systems take
  them. Very long names are cut, and end in a part of their hash.
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
  """The paths, with other names for folders that stand where runs write files."""
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
