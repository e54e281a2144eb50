"""Reads captions of pictures in the formats of the usual tools, and copies them to outputs.

In order of precedence, captions come from `metadata.jsonl` and `metadata.csv` of Hugging Face's
"imagefolder" (columns `file_name`, or `image_file_name` or `image`, a path below the table's own
folder, and `text`; other columns are kept), then from `<picture>.caption` and `<picture>.txt`
beside a picture (kohya's sd-scripts). If a picture has two captions that differ, the first in this
order is used, with a warning. A warning also reports captions that are left out. Texts are UTF-8,
or UTF-16 with a byte-order mark. CSV columns may be separated by commas, semicolons or tabs
(spreadsheets write all three); we write commas.
"""

from __future__ import annotations

import codecs
import collections
import csv
import io
import json
import logging
import os
import posixpath
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from udp_jax.data import naming
from udp_jax.errors import BadDataError
from udp_jax.runtime import files

FILE = "metadata.jsonl"
TABLES = (FILE, "metadata.csv")
SUFFIXES = (".caption", ".txt")
# Columns that can name the picture; the first present one is used.
_NAMING = ("file_name", "image_file_name", "image")
_SEPARATORS = (",", ";", "\t")
# A larger text file beside a picture is not a caption.
_MAX_BYTES = 1 << 20

_log = logging.getLogger(__name__)


class TableRow(NamedTuple):
  """A row of a table: line number, the picture's path below the folder, and all of its fields.

  `key` is the name of the field that names the picture.
  """

  line: int
  relative: str
  fields: dict[str, Any]
  key: str = _NAMING[0]


class Table(NamedTuple):
  """A metadata.jsonl or metadata.csv: its path below the folder, its columns (CSV) and rows."""

  place: str
  columns: tuple[str, ...]
  rows: tuple[TableRow, ...]


class Beside(NamedTuple):
  """Captions beside the pictures of a folder, to be written beside the output pictures.

  Attributes:
    tables: all tables of the folder.
    texts: (picture name, extension, content) of text files beside pictures.
    names: picture name by relative path.
  """

  tables: tuple[Table, ...] = ()
  texts: tuple[tuple[str, str, bytes], ...] = ()
  names: dict[str, str] = {}

  def render(self, names: Collection[str]) -> dict[str, bytes]:
    """Returns the caption files for the pictures `names`, as content by relative path."""
    wanted = frozenset(names)
    made: dict[str, bytes] = {}
    for table in self.tables:
      start = posixpath.dirname(table.place) or "."
      rows = [
        row.fields | {row.key: posixpath.relpath(f"{name}.png", start)}
        for row in table.rows
        if (name := self.names.get(naming.composed(row.relative))) in wanted
      ]
      if rows:
        made[table.place] = _csv(table.columns, rows) if table.columns else _jsonl(rows)
    made |= {f"{name}{suffix}": text for name, suffix, text in self.texts if name in wanted}
    return made


NONE_BESIDE = Beside()


def beside(folder: str | os.PathLike, pictures: Sequence[Any]) -> Beside:
  """Reads the captions beside pictures; warnings count the captions left out, by reason.

  Args:
    folder: the pictures' folder.
    pictures: objects with `name`, `path` and `relative`, such as `listing.ImageFile`.

  Raises:
    BadDataError: a table has an unusable line.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   beside(place, []).names
  {}
  """
  tables = read_tables(folder, [picture.relative for picture in pictures])
  texts = []
  lost: dict[str, list[str]] = collections.defaultdict(list)
  for picture in pictures:
    for suffix in SUFFIXES:
      if reason := _unfit(picture.path.with_suffix(suffix)):
        lost[reason].append(picture.path.with_suffix(suffix).name)
        continue
      content = _text_beside(picture.path, suffix)
      if content is not None:
        texts.append((picture.name, suffix, content))
  names = {naming.composed(picture.relative): picture.name for picture in pictures}
  folded = {name.casefold() for name in names}
  for table in tables:
    for row in table.rows:
      if reason := _misnamed(Path(folder), naming.composed(row.relative), names, folded):
        lost[reason].append(str(row.fields[row.key]))
  for reason, what in lost.items():
    _log.warning(
      "%s: left out %d caption%s %s: %s",
      naming.printable(str(folder)),
      len(what),
      "s" if len(what) > 1 else "",
      reason,
      naming.printable(what[0]),
    )
  return Beside(tables, tuple(texts), names)


def _unfit(path: Path) -> str | None:
  """Returns why a text file cannot be a caption; None if it can, or if there is no such file."""
  if path.is_symlink() and not path.exists():
    return "that is a link to nothing"
  if path.is_file() and path.suffix in SUFFIXES and path.stat().st_size > _MAX_BYTES:
    return f"of more than {_MAX_BYTES >> 20} MiB"
  return None


def _misnamed(
  folder: Path, relative: str, names: Collection[str], folded: Collection[str]
) -> str | None:
  """Returns why a row matches no picture; None for pictures that exist, even if not chosen."""
  if relative in names:
    return None
  if relative.casefold() in folded:
    return "whose table names its picture in other capitals"
  if relative.split("/")[0] == "..":
    return "whose table names a file outside of the folder"
  try:
    there = (folder / relative).is_file()
  except (OSError, ValueError):
    there = False
  return None if there else "whose table names a picture that is not there"


def read_captions(folder: str | os.PathLike, relatives: Iterable[str] = ()) -> dict[str, str]:
  """Returns captions by relative path, or {} if there are none.

  Args:
    folder: the pictures' folder.
    relatives: paths of pictures below the folder; their own text files and the tables in their
      subfolders are read too.

  Raises:
    BadDataError: a text file, or a line of a table, is unusable.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   (Path(place) / "a.txt").write_text("a cat") and read_captions(place, ["a.png"])
  {'a.png': 'a cat'}
  """
  relatives = list(relatives)
  spelled = {naming.composed(relative): relative for relative in relatives}
  found: dict[str, tuple[str, str]] = {}
  differing: list[tuple[str, str, str]] = []

  def add(relative: str, text: str, place: str) -> None:
    relative = spelled.get(naming.composed(relative), relative)
    before = found.setdefault(relative, (text, place))
    if before[0] != text:
      differing.append((relative, before[1], place))

  for table in read_tables(folder, relatives):
    path = Path(folder) / table.place
    lines: dict[str, TableRow] = {}
    for row in table.rows:
      text = row.fields.get("text")
      if "text" not in row.fields:
        raise BadDataError(f'{path}: line {row.line} is not an object with "file_name" and "text"')
      if not isinstance(text, str):
        raise BadDataError(f'{path}: line {row.line}: "file_name" and "text" must be texts')
      if naming.readable(text) != text:
        raise BadDataError(f'{path}: line {row.line}: "text" holds half a character')
      before = lines.setdefault(row.relative, row)
      if before.fields["text"] != text:
        raise BadDataError(
          f"{path}: lines {before.line} and {row.line} have different captions of {row.relative}"
        )
      add(row.relative, text, table.place)
  for suffix in SUFFIXES:
    for relative in relatives:
      path = Path(folder) / relative
      content = _text_beside(path, suffix)
      if content is not None:
        place = PurePosixPath(relative).with_suffix(suffix).as_posix()
        add(relative, _decoded(path.with_suffix(suffix), content).strip(), place)
  if differing:
    relative, used, unused = differing[0]
    _log.warning(
      "%d captions differ from others of the same picture: %s has one in %s, which counts, and one "
      "in %s",
      *(len(differing), *map(naming.printable, (relative, used, unused))),
    )
  return {relative: text for relative, (text, _) in found.items()}


def read_tables(folder: str | os.PathLike, relatives: Iterable[str] = ()) -> tuple[Table, ...]:
  """Reads the tables of a folder and of the subfolders of `relatives`.

  Raises:
    BadDataError: a line is not an object (or row) with a "file_name".

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   (Path(place) / "metadata.csv").write_text("file_name,text\\na.png,a cat\\n") and None
  ...   len(read_tables(place))
  1
  """
  places = {"."} | {str(p) for relative in relatives for p in PurePosixPath(relative).parents}
  tables = []
  for name in TABLES:
    for place in sorted(places):
      path = Path(folder) / place / name
      if path.is_file():
        text = _decoded(path, _content(path))
        read = _read_jsonl if name == FILE else _read_csv
        columns, rows = read(path, text, place)
        tables.append(Table(posixpath.normpath(f"{place}/{name}"), columns, tuple(rows)))
  return tuple(tables)


def _read_jsonl(path: Path, text: str, place: str) -> tuple[tuple[str, ...], list[TableRow]]:
  rows = []
  for number, line in enumerate(text.split("\n"), 1):  # Do not split at U+2028 inside a text.
    if not line.strip():
      continue
    try:
      fields = files.parse_json(line)
    except (ValueError, RecursionError) as error:
      raise BadDataError(
        f'{path}: line {number} is not an object with "file_name" and "text"'
      ) from error
    key = _naming_key(fields) if isinstance(fields, dict) else None
    if key is None:
      raise BadDataError(f'{path}: line {number} is not an object with "file_name" and "text"')
    name = fields[key]
    if not isinstance(name, str):
      raise BadDataError(f'{path}: line {number}: "file_name" and "text" must be texts')
    rows.append(TableRow(number, posixpath.normpath(f"{place}/{name}"), fields, key))
  return (), rows


def _naming_key(fields: Collection[str]) -> str | None:
  """Returns the field or column that names the picture."""
  return next((key for key in _NAMING if key in fields), None)


def _separator(text: str) -> str:
  """Guesses the column separator: the one that yields a column naming the pictures."""
  first = text.split("\n", 1)[0].rstrip("\r")
  for separator in _SEPARATORS:
    try:
      columns = next(csv.reader([first], delimiter=separator), [])
    except csv.Error:
      continue
    if _naming_key(columns) is not None:
      return separator
  return _SEPARATORS[0]


def _read_csv(path: Path, text: str, place: str) -> tuple[tuple[str, ...], list[TableRow]]:
  reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=_separator(text))
  rows = []
  try:
    columns = tuple(reader.fieldnames or ())
    key = _naming_key(columns)
    if key is None:
      raise BadDataError(f'{path}: line 1 has no column "file_name"')
    for fields in reader:
      if None in fields or None in fields.values():
        raise BadDataError(
          f"{path}: line {reader.line_num} has another number of columns than line 1"
        )
      relative = posixpath.normpath(f"{place}/{fields[key]}")
      rows.append(TableRow(reader.line_num, relative, dict(fields), key))
  except csv.Error as error:
    raise BadDataError(f"{path}: line {reader.reader.line_num}: {error}") from error
  return columns, rows


def _jsonl(rows: Sequence[dict[str, Any]]) -> bytes:
  try:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()
  except UnicodeEncodeError:  # An unpaired surrogate, which only an escape can express.
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def _csv(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> bytes:
  buffer = io.StringIO(newline="")
  writer = csv.DictWriter(buffer, columns, lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  return buffer.getvalue().encode()


def _text_beside(picture: Path, suffix: str) -> bytes | None:
  """Reads a picture's own text file with this suffix; None if there is none."""
  path = picture.with_suffix(suffix)
  if path == picture or not path.is_file() or _unfit(path):
    return None
  return _content(path)


def _content(path: Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise BadDataError(f"{path}: cannot be read ({error.strerror})") from error


def _decoded(path: Path, content: bytes) -> str:
  try:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
      return content.decode("utf-16")
    return content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise BadDataError(f"{path}: cannot be read as UTF-8 text ({error})") from error
