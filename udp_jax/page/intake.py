"""Takes in uploaded files and archives: safe names, and limits on number, bytes and pixels.

Nothing here trusts a name, a declared size or a header. An archive is taken whole or not at all.
"""

from __future__ import annotations

import os
import shutil
import stat
import struct
import tempfile
import unicodedata
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from PIL import Image

from udp_jax.data import listing, naming
from udp_jax.errors import BadDataError, ConfigError, UserError
from udp_jax.runtime import files

ARCHIVE = ".zip"

# Of one part of a path in bytes, and of a whole path in characters.
_LONGEST_PART, _LONGEST_PATH = 240, 800
# Captions, texts and tables beside pictures.
_FILES_PER_PICTURE, _MORE_FILES = 4, 20
# A file of an archive that unpacks to more than this many times its size, and over a megabyte.
_MOST_RATIO, _SMALL = 200, 1 << 20
_CHUNK = 1 << 20
# Records at the end of an archive: the end itself, and the locator of 64-bit archives before it.
_END, _END_64, _END_SIZE, _LONGEST_COMMENT = b"PK\x05\x06", b"PK\x06\x07", 22, 1 << 16
_DAMAGED = (
  zipfile.BadZipFile,
  zipfile.LargeZipFile,
  zlib.error,
  EOFError,
  NotImplementedError,
  OSError,
  RuntimeError,
  ValueError,
  struct.error,
)


class Limits(NamedTuple):
  """The most that one job may hold.

  Attributes:
    pictures: number of pictures.
    megapixels: millions of pixels of all pictures together.
    size: bytes of all files together.
  """

  pictures: int = 200
  megapixels: float = 500.0
  size: int = 2 << 30

  @property
  def files(self) -> int:
    """Number of files of any kind."""
    return self.pictures * _FILES_PER_PICTURE + _MORE_FILES


class Held(NamedTuple):
  """What a folder holds: number of files, and their bytes."""

  files: int
  size: int


def held(folder: Path) -> Held:
  """Counts the files below a folder; a missing folder holds none."""
  sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
  return Held(len(sizes), sum(sizes))


def place_of(name: str) -> PurePosixPath | None:
  """Returns the relative path of an uploaded file, or None for a hidden one, which is left out.

  Args:
    name: its path as the browser or the archive gives it, with "/" or a backslash.

  Raises:
    BadDataError: the name is empty, too long, absolute, or leads out of its folder.

  >>> place_of("cats/1.png"), place_of("__MACOSX/._1.png")
  (PurePosixPath('cats/1.png'), None)
  """
  said = naming.printable(naming.readable(name[:200]))
  plain = name.replace("\\", "/")
  parts = plain.split("/")
  if not plain or plain.startswith("/") or PureWindowsPath(plain).drive:
    raise BadDataError(f"{said!r} is no path inside of a folder; name files without a place")
  if any(part in ("", ".", "..") for part in parts):
    raise BadDataError(f"{said!r} leads out of its folder, or nowhere; rename it")
  if any(unicodedata.category(c) in ("Cc", "Cs") for c in plain):
    raise BadDataError(f"{said!r} has control characters in its name; rename it")
  if len(plain) > _LONGEST_PATH or max(len(part.encode()) for part in parts) > _LONGEST_PART:
    raise BadDataError(f"{said}...: the name is too long; shorten it")
  if any(part.startswith(".") or part == "__MACOSX" for part in parts):
    return None
  return PurePosixPath(plain)


def add(folder: Path, name: str, content: Path, limits: Limits) -> int:
  """Moves one uploaded file into a folder; an archive is unpacked there instead.

  Args:
    folder: the job's pictures.
    name: the file's name or path, as for `place_of`.
    content: a temporary file, which is consumed.
    limits: of the whole folder.

  Returns:
    The number of files that came in.

  Raises:
    BadDataError: an unsafe name, a damaged or hostile archive, or a name that is taken.
    ConfigError: the folder would hold more than `limits` allow.
    OutputError: the folder cannot be written.
  """
  try:
    place = place_of(name)
    if place is None:
      return 0
    there = held(folder)
    if place.suffix.lower() == ARCHIVE:
      return _unpack(content, place.name, folder, limits, there)
    _check_room(limits, there, Held(1, content.stat().st_size))
    _take(place, _taken(folder), naming.printable(str(place)))
    _move(content, folder, place)
    return 1
  finally:
    content.unlink(missing_ok=True)


def check_pictures(folder: Path, limits: Limits) -> None:
  """Raises ConfigError if the pictures of a folder are too many or too large, by their headers.

  Damaged files and those that nothing reads count as pictures without pixels.
  """
  found = listing.scan(folder).files
  if len(found) > limits.pictures:
    raise ConfigError(
      f"{len(found)} pictures are more than this page takes at a time ({limits.pictures}); give "
      "fewer, or start it with a larger --max_pictures"
    )
  pixels = sum(_pixels(file.path) for file in found)
  if pixels > limits.megapixels * 1e6:
    raise ConfigError(
      f"{pixels / 1e6:.0f} megapixels are more than this page takes at a time "
      f"({limits.megapixels:g}); give fewer or smaller pictures, or start it with a larger "
      "--max_megapixels"
    )


def _pixels(path: Path) -> int:
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", Image.DecompressionBombWarning)
      with Image.open(path, formats=tuple(naming.FORMATS)) as image:
        return image.width * image.height
  except Exception:  # Whatever a decoder raises: the run itself says what is wrong with the file.
    return 0


def _check_room(limits: Limits, there: Held, more: Held) -> None:
  if there.files + more.files > limits.files:
    raise ConfigError(
      f"{there.files + more.files} files are more than this page takes at a time "
      f"({limits.files}, for {limits.pictures} pictures); give fewer"
    )
  if there.size + more.size > limits.size:
    raise ConfigError(
      f"{(there.size + more.size) / 2**20:.0f} MiB are more than this page takes at a time "
      f"({limits.size / 2**20:.0f}); give fewer files"
    )


def _key(place: PurePosixPath) -> str:
  """Names that some file systems take for one are one here."""
  return naming.composed(naming.composed(str(place)).casefold())


def _taken(folder: Path) -> set[str]:
  paths = (path for path in folder.rglob("*") if path.is_file())
  return {_key(PurePosixPath(path.relative_to(folder).as_posix())) for path in paths}


def _take(place: PurePosixPath, taken: set[str], said: str) -> None:
  """Adds a file's place to those that are taken. Raises BadDataError if it cannot be there too."""
  key = _key(place)
  above = {_key(folder) for folder in place.parents}
  if key in taken or above & taken or any(one.startswith(f"{key}/") for one in taken):
    raise BadDataError(
      f"{said}: a file or folder of this name is there already; rename one of them"
    )
  taken.add(key)


def _move(content: Path, folder: Path, place: PurePosixPath) -> None:
  target = folder / place
  with files.output_errors(target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(content, target)


def _unpack(archive: Path, name: str, folder: Path, limits: Limits, there: Held) -> int:
  """Unpacks an archive whole, or raises and leaves the folder as it was."""
  said = naming.printable(name)
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=folder.parent, prefix="unpack-") as scratch:
    try:
      _check_directory(archive, said)
      with zipfile.ZipFile(archive) as opened:
        entries = list(_entries(opened, said))
        _check_room(limits, there, Held(len(entries), sum(e.file_size for e, _ in entries)))
        parts = []
        for number, (entry, place) in enumerate(entries):
          part = Path(scratch, str(number))
          _extract(opened, entry, part, said)
          parts.append((part, place))
    except UserError:
      raise
    except _DAMAGED as error:
      reason = naming.printable(str(error)) or type(error).__name__
      raise BadDataError(f"{said} cannot be unpacked ({reason}); make the archive again") from error
    taken = _taken(folder)
    for _, place in parts:
      _take(place, taken, f"{said}: {naming.printable(str(place))}")
    for part, place in parts:
      _move(part, folder, place)
  return len(parts)


def _check_directory(archive: Path, said: str) -> None:
  """Refuses what would fill the memory while Python reads an archive's list of files."""
  size = archive.stat().st_size
  with open(archive, "rb") as file:
    start = max(0, size - _END_SIZE - _LONGEST_COMMENT - 20)
    file.seek(start)
    tail = file.read()
  at = tail.rfind(_END)
  if at < 0 or len(tail) < at + _END_SIZE:
    raise BadDataError(f"{said} is no zip archive, or was cut off; make the archive again")
  count, length = struct.unpack_from("<HI", tail, at + 10)
  if tail[max(0, at - 20) : at].startswith(_END_64) or 0xFFFF == count or length > 1 << 26:
    raise BadDataError(f"{said}: too large an archive; make smaller ones")


def _entries(opened: zipfile.ZipFile, said: str) -> Iterator[tuple[zipfile.ZipInfo, PurePosixPath]]:
  """Yields the files of an archive that are taken, with their places.

  Raises:
    BadDataError: an entry is a link, encrypted, unsafe by its name, or a bomb.
  """
  for entry in opened.infolist():
    if entry.is_dir():
      continue
    try:
      # Python cuts names at a NUL; the original says what the archive means.
      place = place_of(entry.orig_filename)
    except BadDataError as error:
      raise BadDataError(f"{said}: {error}") from error
    if place is None:
      continue
    what = f"{said}: {naming.printable(str(place))}"
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
      raise BadDataError(f"{what} is a link or a special file; give the files themselves")
    if entry.flag_bits & 1:
      raise BadDataError(f"{what} is encrypted; give an archive without a password")
    if entry.file_size > _SMALL and entry.file_size > _MOST_RATIO * max(1, entry.compress_size):
      raise BadDataError(
        f"{what} would unpack to over {_MOST_RATIO} times its size; give the file itself"
      )
    if place.suffix.lower() == ARCHIVE:
      raise BadDataError(f"{what} is an archive in an archive; unpack it first")
    yield entry, place


def _extract(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, said: str) -> None:
  """Writes one file of an archive, never more bytes than the archive's list declares."""
  size = 0
  with opened.open(entry) as source, files.output_errors(target), open(target, "wb") as sink:
    while True:
      try:
        block = source.read(_CHUNK)
      except OSError as error:  # Not an error of writing.
        raise zipfile.BadZipFile(str(error)) from error
      if not block:
        return
      size += len(block)
      if size > entry.file_size:
        raise BadDataError(f"{said}: a file is larger than the archive says; make it again")
      sink.write(block)


def pack(folder: Path, archive: Path) -> None:
  """Writes all files of a folder but hidden ones to a zip archive, whole or not at all.

  Raises:
    OutputError: the archive cannot be written.
  """
  staged = archive.with_name(f".{archive.name}{files.TEMPORARY_SUFFIX}")
  with files.output_errors(archive):
    with zipfile.ZipFile(staged, "w", zipfile.ZIP_STORED, strict_timestamps=False) as made:
      for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
          made.write(path, relative.as_posix())
    os.replace(staged, archive)
