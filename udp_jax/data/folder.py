"""Folders of image files, nested ones included, made by anyone."""

from __future__ import annotations

import collections
import logging
import os
import stat
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from udp_jax.data import captions, image_set, images, naming, output, work_folder
from udp_jax.data.image_set import ImageSet, Metadata
from udp_jax.data.naming import unique_names
from udp_jax.data.output import INCOMPLETE
from udp_jax.errors import BadDataError, ConfigError, MissingDataError, UserError

_log = logging.getLogger(__name__)

_OURS = frozenset({"manifest.json", *captions.TABLES})
# Images that we cannot read: reported like a damaged file, not passed over like a text file.
_UNSUPPORTED = frozenset(
  ".heic .heif .avif .jxl .jp2 .psd .svg .eps .ico .tga .exr .hdr .dng .cr2 .nef .arw".split()
)
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\x00", b"MM\x00*")


class ImageFile(NamedTuple):
  """A candidate.

  Attributes:
    name: unique, relative, without extension; see `naming`.
    path: of the file.
    relative: path below the folder as text (`naming.readable`).
  """

  name: str
  path: Path
  relative: str


class Scan(NamedTuple):
  """What a folder holds.

  Attributes:
    files: images in order.
    unusable: (file, reason) of images that cannot be read.
    ignored: how many other files there are, by extension; captions do not count.
    left_out: nested folders that udp_jax wrote, whose pictures are not listed.
    linked: links to what udp_jax wrote elsewhere, which are not listed either.
    hidden: pictures that are passed over, as they or their folders are hidden.
  """

  files: tuple[ImageFile, ...]
  unusable: tuple[tuple[str, str], ...]
  ignored: dict[str, int]
  left_out: tuple[str, ...] = ()
  linked: tuple[str, ...] = ()
  hidden: tuple[str, ...] = ()


def scan(folder: str | os.PathLike) -> Scan:
  """Lists the image files below a folder, sorted by relative path, without decoding them.

  Hidden files, `manifest.json` and the tables of captions are passed over, hidden pictures with a
  line in the log; links to folders are followed. Nested folders that a run of ours wrote (outputs,
  finished or not, and work folders), and links to files in such folders, are left out, which is
  logged: a protected picture is not to be protected again by accident. A file
  with an unknown extension counts as an image if its first bytes say so. Names are those of
  `naming.unique_names`.

  Raises:
    MissingDataError: there is no such folder.
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
    """Whether a link leads out of the folder, to what a run of ours wrote."""
    real = Path(os.path.realpath(path))
    if real.is_relative_to(here):
      return False
    for parent in real.parents:
      place = str(parent)
      if place not in known:
        known[place] = output.is_written(parent) or work_folder.is_ours(parent)
      # What holds this whole folder as well says nothing of a part of it.
      if known[place] and not Path(here).is_relative_to(parent):
        return True
    return False

  for root, subfolders, names in os.walk(folder, followlinks=True, onerror=unlistable):
    seen.add(os.path.realpath(root))
    if Path(root) != folder and (
      output.is_written(root)
      or work_folder.is_ours(root)
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
        # Opening a pipe would wait for somebody to write to it.
        refuse(relative, f"{path}: it is no regular file; remove it")
      elif path.suffix.lower() in images.SUFFIXES or _looks_like_image(path):
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
  """Pictures in a folder that are hidden, and those in its hidden folders.

  Files named `._x` are what macOS keeps of the file x, and nobody's pictures.
  """
  found = [Path(root, name) for name in names if name.startswith(".")]
  for subfolder in subfolders:
    if subfolder.startswith("."):
      for inner, _, inside in os.walk(os.path.join(root, subfolder)):
        found += [Path(inner, name) for name in inside]
  return [
    naming.readable(path.relative_to(folder).as_posix())
    for path in found
    if path.suffix.lower() in {*images.SUFFIXES, *_UNSUPPORTED} and not path.name.startswith("._")
  ]


def load_folder(
  folder: str | os.PathLike,
  *,
  image_size: int | None,
  limit: int | None,
  seed: int,
  strict: bool,
  classes: Sequence[str] | None,
) -> ImageSet:
  """Reads a folder; arguments and errors as in `sources.load`."""
  folder = Path(folder)

  def prepare(picture: images.Picture) -> images.Picture:
    return picture if image_size is None else images.resize_picture(picture, image_size)

  found = select(folder, limit=limit, seed=seed, strict=strict, classes=classes, keep=prepare)
  chosen, pictures, class_names = found.files, found.kept, found.class_names
  _check_sizes(folder, chosen, pictures)
  return image_set.finish(
    np.stack([picture.pixels for picture in pictures]),
    [file.name for file in chosen],
    naming.readable(f"folder {folder}"),
    labels=np.array([class_names.index(f.relative.split("/")[0]) for f in chosen], np.int32)
    if class_names
    else None,
    alphas=[picture.alpha for picture in pictures],
    metadata=[Metadata(file.relative, *picture[2:]) for file, picture in zip(chosen, pictures)],
    classes=class_names or None,
    beside=found.beside,
    **found.origin,
  )


class Selection(NamedTuple):
  """The usable files of a folder.

  Attributes:
    files: in order.
    kept: what was kept of each.
    notes: on each, what reading it changed.
    class_names: of its first-level subfolders.
    beside: their captions.
    origin: what an origin reports: "skipped" files with reasons, "ignored" and "ignored_kinds" of
      files that are no pictures, "notes" on how many pictures, and what the folder, and folders
      left out of it, are to us.
  """

  files: list[ImageFile]
  kept: list[Any]
  notes: list[tuple[str, ...]]
  class_names: list[str]
  beside: captions.Beside
  origin: dict[str, Any]


def select(
  folder: Path,
  *,
  limit: int | None,
  seed: int,
  strict: bool,
  classes: Sequence[str] | None,
  keep: Callable[[images.Picture], Any],
) -> Selection:
  """Reads the wanted pictures of a folder, one at a time, and keeps of each what `keep` returns.

  The other arguments and the errors are those of `sources.load`.
  """
  image_set.check_limit(limit)
  if (folder / INCOMPLETE).exists():
    raise BadDataError(f"{folder}: its writing was interrupted; run the stage that makes it again")
  listing = scan(folder)
  class_names = _class_names(listing.files)
  candidates = listing.files
  if classes is not None:
    image_set.class_indices(classes, class_names, str(folder))
    candidates = tuple(f for f in candidates if f.relative.split("/")[0] in classes)
  skipped = list(listing.unusable)
  if strict and skipped:
    raise BadDataError(skipped[0][1])
  if not candidates and not skipped:
    count = sum(listing.ignored.values())
    also = f" ({count} other files: {_counted(listing.ignored)})" if count else ""
    if listing.hidden:
      also += f" ({len(listing.hidden)} hidden ones are passed over: {listing.hidden[0]})"
    if listing.linked:
      raise MissingDataError(
        f"{folder}: no images in it but {len(listing.linked)} links to what udp_jax wrote "
        f"({listing.linked[0]}); give the folder that they lead to"
      )
    if listing.left_out:
      raise MissingDataError(
        f"{folder}: no images in it but in {len(listing.left_out)} folders that udp_jax wrote "
        f"({listing.left_out[0]}); give one of them itself"
      )
    raise MissingDataError(f"{folder}: no images in it{also}; put PNG or JPEG files there")

  order = np.arange(len(candidates))
  if limit is not None and limit < len(candidates):
    # Bad files are replaced by the next of the same permutation, so a limit is kept if it can be.
    order = np.random.default_rng(seed).permutation(len(candidates))
  good: dict[int, Any] = {}
  notes: dict[int, tuple[str, ...]] = {}
  for index in order.tolist():
    if len(good) == limit:
      break
    file = candidates[index]
    try:
      with warnings.catch_warnings():
        # We have a limit of our own; Pillow warns from 89 megapixels on.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        picture = images.read_image(file.path)
    except UserError as error:
      if strict:
        raise
      skipped.append((file.relative, naming.printable(str(error))))
      continue
    if naming.readable(os.fspath(file.path.name)) != file.path.name:
      picture = picture._replace(notes=(naming.NOT_UTF8, *picture.notes))
    good[index], notes[index] = keep(picture), picture.notes
  for _, reason in skipped:
    _log.warning("skipped %s", reason)
  if skipped:
    _log.warning("%s: skipped %d unusable files", folder, len(skipped))
  if not good:
    raise BadDataError(f"{folder}: none of {len(skipped)} image files is usable; {skipped[0][1]}")
  if listing.ignored:
    _log.info("%s: ignored: %s", naming.printable(str(folder)), _counted(listing.ignored))
  counts = collections.Counter(note for index in sorted(notes) for note in notes[index])
  for note, count in counts.items():
    _log.info("%d picture%s: %s", count, "s" if count > 1 else "", note)
  files = [candidates[index] for index in sorted(good)]
  return Selection(
    files=files,
    kept=[good[index] for index in sorted(good)],
    notes=[notes[index] for index in sorted(good)],
    class_names=class_names,
    beside=captions.beside(folder, files),
    origin={
      "skipped": [list(entry) for entry in skipped],
      "ignored": sum(listing.ignored.values()),
      "ignored_kinds": listing.ignored,
      "notes": dict(counts),
      **_ours(folder, listing),
    },
  )


def _counted(kinds: dict[str, int]) -> str:
  """ "2 .txt, 1 .mp4"."""
  return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _ours(folder: Path, listing: Scan) -> dict[str, Any]:
  found: dict[str, Any] = {}
  if (what := output.describe(folder)) is not None:
    found["input_is"] = f"input is {what}"
  if listing.left_out:
    found["left_out"] = list(listing.left_out)
  if listing.linked:
    found["linked"] = list(listing.linked)
  if listing.hidden:
    found["hidden"] = len(listing.hidden)
  return found


def _class_names(files: Sequence[ImageFile]) -> list[str]:
  """First-level subfolders, if every image lies in one of at least two of them."""
  if any("/" not in file.relative for file in files):
    return []
  names = sorted({file.relative.split("/")[0] for file in files})
  return names if len(names) > 1 else []


def _check_sizes(
  folder: Path, files: Sequence[ImageFile], pictures: Sequence[images.Picture]
) -> None:
  first = pictures[0].pixels.shape
  for file, picture in zip(files, pictures):
    if picture.pixels.shape != first:
      (h0, w0), (h1, w1) = first[:2], picture.pixels.shape[:2]
      raise ConfigError(
        f"{folder}: images of different sizes ({files[0].relative} is {w0}x{h0}, {file.relative} "
        f"is {w1}x{h1}); set image_size to crop and resize them to one"
      )


def _is_special(path: Path) -> bool:
  """Whether a file is a pipe, a socket or a device."""
  try:
    mode = path.stat().st_mode
  except OSError:
    return False  # A link to nothing is a missing file.
  return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _looks_like_image(path: Path) -> bool:
  try:
    with open(path, "rb") as file:
      head = file.read(12)
  except OSError:
    return False  # without an image's extension there is no reason to report it
  return head.startswith(_SIGNATURES) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")
