"""Captions of pictures, as the usual tools keep them, read and carried along.

In order of precedence: `metadata.jsonl` and `metadata.csv` of Hugging Face's "imagefolder" (columns
`file_name`, a path below the table's own folder, and `text`; any others are kept), then `<picture>
.caption` and `<picture>.txt` beside a picture (kohya's sd-scripts). Where a picture has two
captions that differ, the first of this order counts, and a warning says so.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import posixpath
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from udp_jax.data import files, naming
from udp_jax.errors import BadDataError

FILE = "metadata.jsonl"
TABLES = (FILE, "metadata.csv")
SUFFIXES = (".caption", ".txt")
# A larger text file beside a picture is no caption.
_MAX_BYTES = 1 << 20

_log = logging.getLogger(__name__)


class Row(NamedTuple):
  """A line of a table: its number, the picture's path below the folder, and all of its fields."""

  line: int
  relative: str
  fields: dict[str, Any]


class Table(NamedTuple):
  """A metadata.jsonl or metadata.csv: its path below the folder, columns (CSV) and rows."""

  place: str
  columns: tuple[str, ...]
  rows: tuple[Row, ...]


class Beside(NamedTuple):
  """What stands beside the pictures of a folder, to be written beside those made of them.

  Attributes:
    tables: every table of the folder.
    texts: (name of the picture, extension, content) of text files beside pictures.
    names: name by relative path of the picture.
  """

  tables: tuple[Table, ...] = ()
  texts: tuple[tuple[str, str, bytes], ...] = ()
  names: dict[str, str] = {}

  def render(self, names: Collection[str]) -> dict[str, bytes]:
    """Files to write, content by relative path, that speak of `<name>.png` for these names."""
    wanted = frozenset(names)
    made: dict[str, bytes] = {}
    for table in self.tables:
      start = posixpath.dirname(table.place) or "."
      rows = [
        row.fields | {"file_name": posixpath.relpath(f"{name}.png", start)}
        for row in table.rows
        if (name := self.names.get(naming.composed(row.relative))) in wanted
      ]
      if rows:
        made[table.place] = _csv(table.columns, rows) if table.columns else _jsonl(rows)
    made |= {f"{name}{suffix}": text for name, suffix, text in self.texts if name in wanted}
    return made


NONE_BESIDE = Beside()


def beside(folder: str | os.PathLike, pictures: Sequence[Any]) -> Beside:
  """What stands beside pictures.

  Args:
    folder: of the pictures.
    pictures: with `name`, `path` and `relative`, such as `folder.ImageFile`.

  Raises:
    BadDataError: a table has a line that cannot be used.
  """
  tables = read_tables(folder, [picture.relative for picture in pictures])
  texts = []
  for picture in pictures:
    for suffix in SUFFIXES:
      content = _text_beside(picture.path, suffix)
      if content is not None:
        texts.append((picture.name, suffix, content))
  names = {naming.composed(picture.relative): picture.name for picture in pictures}
  return Beside(tables, tuple(texts), names)


def read_captions(folder: str | os.PathLike, relatives: Iterable[str] = ()) -> dict[str, str]:
  """Captions by relative path; empty where there are none.

  Args:
    folder: of the pictures.
    relatives: paths of pictures below it, whose own text files and tables in subfolders are read
      too.

  Raises:
    BadDataError: a line of a table, or a text file, cannot be used.
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
    lines: dict[str, Row] = {}
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
  """The tables of a folder and of the subfolders of `relatives`.

  Raises:
    BadDataError: a line is no object, or row, with a "file_name".
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


def _read_jsonl(path: Path, text: str, place: str) -> tuple[tuple[str, ...], list[Row]]:
  rows = []
  for number, line in enumerate(text.split("\n"), 1):  # Not at U+2028 inside a text.
    if not line.strip():
      continue
    try:
      fields = files.parse_json(line)
      name = fields["file_name"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise BadDataError(
        f'{path}: line {number} is not an object with "file_name" and "text"'
      ) from error
    if not isinstance(name, str):
      raise BadDataError(f'{path}: line {number}: "file_name" and "text" must be texts')
    rows.append(Row(number, posixpath.normpath(f"{place}/{name}"), fields))
  return (), rows


def _read_csv(path: Path, text: str, place: str) -> tuple[tuple[str, ...], list[Row]]:
  reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
  rows = []
  try:
    columns = tuple(reader.fieldnames or ())
    if "file_name" not in columns:
      raise BadDataError(f'{path}: line 1 has no column "file_name"')
    for fields in reader:
      if None in fields or None in fields.values():
        raise BadDataError(
          f"{path}: line {reader.line_num} has another number of columns than line 1"
        )
      relative = posixpath.normpath(f"{place}/{fields['file_name']}")
      rows.append(Row(reader.line_num, relative, dict(fields)))
  except csv.Error as error:
    raise BadDataError(f"{path}: line {reader.reader.line_num}: {error}") from error
  return columns, rows


def _jsonl(rows: Sequence[dict[str, Any]]) -> bytes:
  try:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()
  except UnicodeEncodeError:  # Half of a character, which only an escape can write.
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def _csv(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> bytes:
  buffer = io.StringIO(newline="")
  writer = csv.DictWriter(buffer, columns, lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  return buffer.getvalue().encode()


def _text_beside(picture: Path, suffix: str) -> bytes | None:
  """The content of a picture's own text file, or None."""
  path = picture.with_suffix(suffix)
  if path == picture or not path.is_file() or path.stat().st_size > _MAX_BYTES:
    return None
  return _content(path)


def _content(path: Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise BadDataError(f"{path}: cannot be read ({error.strerror})") from error


def _decoded(path: Path, content: bytes) -> str:
  try:
    return content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise BadDataError(f"{path}: cannot be read as UTF-8 text ({error})") from error
