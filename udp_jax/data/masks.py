"""Masks: the parts of a picture that may change are white."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from udp_jax.data import images, listing, naming
from udp_jax.data.picture_files import PictureFile
from udp_jax.errors import BadDataError, MissingDataError

# Masks are binary: a level in between would act as a separate budget.
_WHITE = 128


def find(place: str | os.PathLike, pictures: Sequence[PictureFile]) -> dict[str, Path]:
  """Finds the mask file of every picture by the picture's name, and checks all masks.

  Args:
    place: one mask for all pictures, or a folder of masks named like the pictures (extensions may
      differ).
    pictures: the pictures to mask.

  Raises:
    MissingDataError: the place does not exist, or a picture has no mask.
    BadDataError: a mask is unreadable, differs in size from its picture, or has no white pixel.

  >>> import tempfile
  >>> from udp_jax.data import images
  >>> with tempfile.TemporaryDirectory() as place:
  ...   images.write_png(f"{place}/a.png", np.full((4, 4, 3), 255, np.uint8))
  ...   picture = PictureFile("a", Path(place) / "a.png", "a.png", 4, 4, "")
  ...   [path.name for path in find(f"{place}/a.png", [picture]).values()]
  ['a.png']
  """
  place = Path(place)
  if place.is_dir():
    masks = {naming.composed(file.name): file.path for file in listing.scan(place).files}
  elif place.is_file():
    masks = {naming.composed(picture.name): place for picture in pictures}
  else:
    raise MissingDataError(f"{place}: no such file or folder; give a mask, or a folder of masks")
  found = {}
  for picture in pictures:
    if (name := naming.composed(picture.name)) not in masks:
      raise MissingDataError(
        f"{place}: no mask for {picture.relative}; give it an all-white one to protect all of it"
      )
    found[picture.name] = masks[name]
    read(masks[name], picture)
  return found


def read(path: Path, picture: PictureFile) -> np.ndarray:
  """Reads a mask as booleans (H, W): True where it is opaque with a grey value of 128 or more.

  Raises:
    MissingDataError, BadDataError: the mask is missing, damaged, of another size or without white.

  >>> import tempfile
  >>> from udp_jax.data import images
  >>> with tempfile.TemporaryDirectory() as place:
  ...   images.write_png(f"{place}/a.png", np.full((4, 4, 3), 255, np.uint8))
  ...   picture = PictureFile("a", Path(place) / "a.png", "a.png", 4, 4, "")
  ...   bool(read(picture.path, picture).all())
  True
  """
  return read_for(path, picture.relative, (picture.height, picture.width))


def read_for(
  path: Path, name: str, size: tuple[int, int], *, done: str = "protected"
) -> np.ndarray:
  """Reads the mask of any picture, given only the picture's name and size.

  Args:
    path: the mask file.
    name: the picture's name, for errors.
    size: (height, width) of the picture.
    done: what happens to the picture where the mask is white, for errors.

  Raises:
    MissingDataError, BadDataError: the mask is missing, damaged, of another size or without white.

  >>> import tempfile
  >>> from udp_jax.data import images
  >>> with tempfile.TemporaryDirectory() as place:
  ...   images.write_png(f"{place}/a.png", np.full((4, 4, 3), 255, np.uint8))
  ...   read_for(Path(place) / "a.png", "a", (4, 4)).shape
  (4, 4)
  """
  mask = images.read_large(path)
  height, width = mask.pixels.shape[:2]
  if (height, width) != size:
    raise BadDataError(
      f"{path}: the mask is {width}x{height}, {name} is {size[1]}x{size[0]}; save it in the "
      "picture's size"
    )
  opaque = np.ones((height, width), bool) if mask.alpha is None else mask.alpha >= _WHITE
  white = (mask.pixels.mean(axis=-1) >= _WHITE) & opaque
  if not white.any():
    painted = mask.pixels[opaque & (mask.pixels.max(axis=-1) >= _WHITE)]
    hint = " (what is painted in this one is coloured: paint it white)" if len(painted) else ""
    raise BadDataError(
      f"{path}: this mask lets no pixel of {name} change, so nothing would be {done}; a mask is "
      f"white and opaque where the picture is to be {done}, and black or transparent "
      f"elsewhere{hint}"
    )
  return white


def sha256(masks: dict[str, Path]) -> str:
  """Returns the SHA-256 over all mask files, ordered by picture name.

  >>> import tempfile
  >>> from udp_jax.data import images
  >>> with tempfile.TemporaryDirectory() as place:
  ...   images.write_png(f"{place}/a.png", np.full((4, 4, 3), 255, np.uint8))
  ...   len(sha256({"a": Path(place) / "a.png"}))
  64
  """
  digest = hashlib.sha256()
  for name in sorted(masks):
    digest.update(name.encode() + b"\0" + hashlib.sha256(masks[name].read_bytes()).digest())
  return digest.hexdigest()
