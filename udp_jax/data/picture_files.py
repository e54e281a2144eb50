"""Lists the usable pictures of a folder, of any sizes, with facts about each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from udp_jax.data import folder as folders
from udp_jax.data import images, naming, originals
from udp_jax.data.captions import NONE_BESIDE, Beside


class PictureFile(NamedTuple):
  """A usable picture whose pixels stay on disk.

  Attributes:
    name: unique relative name without extension.
    path: path of the file.
    relative: path below the folder.
    height: height of the upright picture, pixels.
    width: width of the upright picture, pixels.
    sha256: SHA-256 of the pixels and transparency.
    file_sha256: SHA-256 of the file's bytes.
    notes: descriptions of what reading changes, converts or leaves out.
  """

  name: str
  path: Path
  relative: str
  height: int
  width: int
  sha256: str
  file_sha256: str = ""
  notes: tuple[str, ...] = ()


class PictureFolder(NamedTuple):
  """The usable pictures of a folder, of any sizes.

  Attributes:
    folder: the pictures' folder.
    files: the pictures, in order.
    origin: fields as in `ImageSet.origin`.
    beside: captions beside the pictures.
  """

  folder: Path
  files: tuple[PictureFile, ...]
  origin: dict[str, Any]
  beside: Beside = NONE_BESIDE


def list_pictures(
  folder: str | os.PathLike,
  *,
  limit: int | None = None,
  seed: int = 0,
  strict: bool = False,
  classes: Sequence[str] | None = None,
) -> PictureFolder:
  """Decodes every picture of a folder once, one at a time, without keeping pixels in memory.

  Arguments and errors are those of `sources.load`, but pictures may differ in size.

  >>> import tempfile
  >>> import numpy as np
  >>> from udp_jax.data import images
  >>> with tempfile.TemporaryDirectory() as place:
  ...   images.write_png(f"{place}/a.png", np.full((4, 4, 3), 255, np.uint8))
  ...   [file.relative for file in list_pictures(place).files]
  ['a.png']
  """
  folder = Path(folder)

  def measure(picture: images.Picture) -> tuple[int, int, str]:
    height, width = picture.pixels.shape[:2]
    return height, width, originals.picture_sha256(picture)

  found = folders.select(
    folder, limit=limit, seed=seed, strict=strict, classes=classes, keep=measure
  )
  files = tuple(
    PictureFile(*file, height, width, digest, originals.file_sha256(file.path), notes)
    for file, (height, width, digest), notes in zip(found.files, found.kept, found.notes)
  )
  identity = "\n".join(f"{file.relative}\0{file.sha256}" for file in files)
  origin = {
    "source": naming.readable(f"folder {folder}"),
    "count": len(files),
    "sha256": hashlib.sha256(identity.encode()).hexdigest(),
    "classes": found.class_names or None,
    **found.origin,
  }
  return PictureFolder(folder, files, origin, found.beside)
