"""Lists the image files of a folder, including nested ones, without decoding them."""

from __future__ import annotations

import collections
import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from udp_jax.data import captions, marks, naming
from udp_jax.data.naming import unique_names
from udp_jax.errors import MissingDataError
from udp_jax.runtime import workdir

_log = logging.getLogger(__name__)
_OURS = frozenset({"manifest.json", *captions.TABLES})
# Image formats that we cannot read: reported like a damaged file, not ignored like a text file.
_UNSUPPORTED = frozenset(
  ".heic .heif .avif .jxl .jp2 .psd .svg .eps .ico .tga .exr .hdr .dng .cr2 .nef .arw".split()
)
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\x00", b"MM\x00*")


class ImageFile(NamedTuple):
  """A file that may be an image.

  Attributes:
    name: unique relative path without extension, made by `naming.unique_names`.
    path: path of the file.
    relative: path below the folder as text (`naming.readable`).
  """

  name: str
  path: Path
  relative: str


class Scan(NamedTuple):
  """The image files of a folder, and the files that were skipped.

  Attributes:
    files: image files in order.
    unusable: (file, reason) for images that cannot be read.
    ignored: number of other files by extension, without captions.
    left_out: nested folders that udp_jax wrote; their pictures are not listed.
    linked: links to files that udp_jax wrote elsewhere; they are not listed either.
    hidden: pictures that are skipped because they, or their folders, are hidden.
  """

  files: tuple[ImageFile, ...]
  unusable: tuple[tuple[str, str], ...]
  ignored: dict[str, int]
  left_out: tuple[str, ...] = ()
  linked: tuple[str, ...] = ()
  hidden: tuple[str, ...] = ()


def scan(folder: str | os.PathLike) -> Scan:
  """Lists the image files below a folder, sorted by relative path, without decoding them.

  Hidden files, `manifest.json` and caption tables are skipped; hidden pictures are logged. Links to
  folders are followed. Nested folders that a run of ours wrote (outputs, finished or not, and work
  folders), and links to files in such folders, are left out and logged, so that a protected picture
  is not protected again by accident. A file with an unknown extension counts as an image if its
  first bytes say so. Names come from `naming.unique_names`.

  Raises:
    MissingDataError: the folder does not exist.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   (Path(place) / "notes.txt").touch()
  ...   len(scan(place).files)
  0
  """
  folder = Path(folder)
  if not folder.is_dir():
    what = "is a file, not a folder" if folder.exists() else "no such folder"
    raise MissingDataError(f"{folder}: {what}; give a folder of images")
  found: list[tuple[str, Path]] = []
  unusable: list[tuple[str, str]] = []
  others: list[Path] = []

  def refuse(relative: str, reason: str) -> None:
    unusable.append((naming.readable(relative), naming.printable(reason)))

  def unlistable(error: OSError) -> None:
    place = os.path.relpath(str(error.filename), folder).replace(os.sep, "/")
    refuse(place, f"{error.filename}: cannot be listed ({error.strerror})")

  seen: set[str] = set()
  left_out: list[str] = []
  linked: list[str] = []
  hidden: list[str] = []
  here = os.path.realpath(folder)
  known: dict[str, bool] = {}

  def elsewhere_ours(path: Path | str) -> bool:
    """Returns whether a link leads outside the folder, to files that a run of ours wrote."""
    real = Path(os.path.realpath(path))
    if real.is_relative_to(here):
      return False
    for parent in real.parents:
      place = str(parent)
      if place not in known:
        known[place] = marks.is_written(parent) or workdir.is_ours(parent)
      # A marked folder that holds the whole input says nothing about a link within it.
      if known[place] and not Path(here).is_relative_to(parent):
        return True
    return False

  for root, subfolders, names in os.walk(folder, followlinks=True, onerror=unlistable):
    seen.add(os.path.realpath(root))
    if Path(root) != folder and (
      marks.is_written(root)
      or workdir.is_ours(root)
      or (os.path.islink(root) and elsewhere_ours(root))
    ):
      left_out.append(Path(root).relative_to(folder).as_posix())
      subfolders.clear()
      continue
    hidden += _hidden_pictures(folder, root, subfolders, names)
    subfolders[:] = sorted(
      name
      for name in subfolders
      if not name.startswith(".") and os.path.realpath(os.path.join(root, name)) not in seen
    )
    for name in names:
      if name.startswith(".") or name in _OURS:
        continue
      path = Path(root, name)
      relative = path.relative_to(folder).as_posix()
      if path.is_symlink() and elsewhere_ours(path):
        linked.append(naming.readable(relative))
      elif path.suffix.lower() in _UNSUPPORTED:
        refuse(relative, f"{path}: {path.suffix} files are not supported; save as PNG")
      elif _is_special(path):
        # Opening a pipe would block until somebody writes to it.
        refuse(relative, f"{path}: it is no regular file; remove it")
      elif path.suffix.lower() in naming.SUFFIXES or _looks_like_image(path):
        found.append((naming.readable(relative), path))
      else:
        others.append(path)
  found.sort(key=lambda entry: (entry[0], os.fspath(entry[1])))
  if left_out:
    _log.warning(
      "%s: left out %d folders that udp_jax wrote: %s", folder, len(left_out), ", ".join(left_out)
    )
  if linked:
    _log.warning(
      "%s: left out %d links to what udp_jax wrote: %s",
      *(folder, len(linked), naming.printable(", ".join(sorted(linked)))),
    )
  if hidden:
    _log.warning(
      "%s: passed over %d hidden pictures: %s",
      *(folder, len(hidden), naming.printable(", ".join(sorted(hidden)))),
    )
  files = tuple(
    ImageFile(name, path, relative)
    for name, (relative, path) in zip(unique_names([relative for relative, _ in found]), found)
  )
  stems = {path.with_suffix("") for _, path in found}
  kinds = collections.Counter(
    naming.printable(path.suffix.lower()) or "without extension"
    for path in others
    if path.suffix not in captions.SUFFIXES or path.with_suffix("") not in stems
  )
  return Scan(
    files,
    tuple(sorted(unusable)),
    dict(sorted(kinds.items())),
    tuple(left_out),
    tuple(sorted(linked)),
    tuple(sorted(hidden)),
  )


def _hidden_pictures(
  folder: Path, root: str, subfolders: Sequence[str], names: Sequence[str]
) -> list[str]:
  """Returns hidden pictures in a folder, and pictures in its hidden subfolders.

  Files named `._x` hold macOS metadata of the file x and are not pictures.
  """
  found = [Path(root, name) for name in names if name.startswith(".")]
  for subfolder in subfolders:
    if subfolder.startswith("."):
      for inner, _, inside in os.walk(os.path.join(root, subfolder)):
        found += [Path(inner, name) for name in inside]
  return [
    naming.readable(path.relative_to(folder).as_posix())
    for path in found
    if path.suffix.lower() in {*naming.SUFFIXES, *_UNSUPPORTED} and not path.name.startswith("._")
  ]


def _is_special(path: Path) -> bool:
  """Returns whether a file is a pipe, a socket or a device."""
  try:
    mode = path.stat().st_mode
  except OSError:
    return False  # A broken link counts as a missing file.
  return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _looks_like_image(path: Path) -> bool:
  try:
    with open(path, "rb") as file:
      head = file.read(12)
  except OSError:
    return False  # without an image extension there is no reason to report it
  return head.startswith(_SIGNATURES) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")
