"""Reads folders of image files from any tool, including nested folders."""

from __future__ import annotations

import collections
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from udp_jax.data import captions, image_set, images, marks, naming
from udp_jax.data import listing as listing_lib
from udp_jax.data.image_set import ImageSet, Metadata
from udp_jax.data.listing import ImageFile, Scan
from udp_jax.data.marks import INCOMPLETE
from udp_jax.errors import BadDataError, ConfigError, MissingDataError, UserError

_log = logging.getLogger(__name__)


def load_folder(
  folder: str | os.PathLike,
  *,
  image_size: int | None,
  limit: int | None,
  seed: int,
  strict: bool,
  classes: Sequence[str] | None,
) -> ImageSet:
  """Reads a folder of images; arguments and errors as in `sources.load`.

  >>> import tempfile
  >>> from udp_jax.data import images
  >>> with tempfile.TemporaryDirectory() as place:
  ...   images.write_png(f"{place}/a.png", np.full((4, 4, 3), 255, np.uint8))
  ...   load_folder(place, image_size=None, limit=None, seed=0, strict=True, classes=None).names
  ('a',)
  """
  folder = Path(folder)

  def prepare(picture: images.Picture) -> images.Picture:
    return picture if image_size is None else images.resize_picture(picture, image_size)

  found = select(folder, limit=limit, seed=seed, strict=strict, classes=classes, keep=prepare)
  chosen, pictures, class_names = found.files, found.kept, found.class_names
  _check_sizes(folder, chosen, pictures)
  return image_set.finish(
    ImageSet(
      np.stack([picture.pixels for picture in pictures]),
      [file.name for file in chosen],
      labels=np.array([class_names.index(f.relative.split("/")[0]) for f in chosen], np.int32)
      if class_names
      else None,
      alphas=[picture.alpha for picture in pictures],
      metadata=[Metadata(file.relative, *picture[2:]) for file, picture in zip(chosen, pictures)],
      beside=found.beside,
    ),
    naming.readable(f"folder {folder}"),
    classes=class_names or None,
    **found.origin,
  )


class Selection(NamedTuple):
  """The usable files of a folder.

  Attributes:
    files: the pictures' files, in order.
    kept: what `keep` returned for each picture.
    notes: what reading changed in each picture.
    class_names: names of the first-level subfolders.
    beside: captions of the pictures.
    origin: fields for `ImageSet.origin`: "skipped" files with reasons, "ignored" and
      "ignored_kinds" (other files), "notes" with counts, and whether the folder, or folders left
      out of it, are our outputs.
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
  """Reads the wanted pictures of a folder one at a time, and stores what `keep` returns for each.

  The other arguments and errors are those of `sources.load`.

  >>> import tempfile
  >>> from udp_jax.data import images
  >>> with tempfile.TemporaryDirectory() as place:
  ...   images.write_png(f"{place}/a.png", np.full((4, 4, 3), 255, np.uint8))
  ...   found = select(
  ...     Path(place), limit=None, seed=0, strict=True, classes=None, keep=lambda picture: picture
  ...   )
  ...   found.kept[0].pixels.shape
  (4, 4, 3)
  """
  image_set.check_limit(limit)
  if (folder / INCOMPLETE).exists():
    raise BadDataError(f"{folder}: its writing was interrupted; run the stage that makes it again")
  listing = listing_lib.scan(folder)
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
    # The next file in the permutation replaces a bad one, so that `limit` is reached if possible.
    order = np.random.default_rng(seed).permutation(len(candidates))
  good: dict[int, Any] = {}
  notes: dict[int, tuple[str, ...]] = {}
  for index in order.tolist():
    if len(good) == limit:
      break
    file = candidates[index]
    try:
      with warnings.catch_warnings():
        # We check our own limit; Pillow warns from 89 megapixels on.
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
  """Formats counts as "2 .txt, 1 .mp4"."""
  return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _ours(folder: Path, listing: Scan) -> dict[str, Any]:
  found: dict[str, Any] = {}
  if (what := marks.describe(folder)) is not None:
    found["input_is"] = f"input is {what}"
  if listing.left_out:
    found["left_out"] = list(listing.left_out)
  if listing.linked:
    found["linked"] = list(listing.linked)
  if listing.hidden:
    found["hidden"] = len(listing.hidden)
  return found


def _class_names(files: Sequence[ImageFile]) -> list[str]:
  """Returns the first-level subfolders, if all images lie in at least two of them."""
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
