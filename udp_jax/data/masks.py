"""Masks: which part of a picture may be changed. White means yes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from udp_jax.data import folder as folders
from udp_jax.data import naming, picture_folder
from udp_jax.data.picture_folder import PictureFile
from udp_jax.errors import BadDataError, MissingDataError

# A mask is yes or no: a level in between would be a budget of its own.
_WHITE = 128


def find(place: str | os.PathLike, pictures: Sequence[PictureFile]) -> dict[str, Path]:
  """The mask file of every picture, by the picture's name; all of them are read and checked.

  Args:
    place: one mask for all pictures, or a folder of masks with the pictures' names (extensions may
      differ).
    pictures: to be masked.

  Raises:
    MissingDataError: nothing is there, or no mask for one of the pictures.
    BadDataError: a mask is unreadable, not of its picture's size, or white nowhere.
  """
  place = Path(place)
  if place.is_dir():
    masks = {naming.composed(file.name): file.path for file in folders.scan(place).files}
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
  """A mask as booleans (H, W): where its grey value is 128 or more, and it is not transparent.

  Raises:
    MissingDataError, BadDataError: see `find`.
  """
  return read_for(path, picture.relative, (picture.height, picture.width))


def read_for(
  path: Path, name: str, size: tuple[int, int], *, done: str = "protected"
) -> np.ndarray:
  """`read` for any picture.

  Args:
    path: of the mask.
    name: of the picture, for errors.
    size: its height and width.
    done: what is done to the picture where the mask is white.

  Raises:
    MissingDataError, BadDataError: see `find`.
  """
  mask = picture_folder.read(path)
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
  """SHA-256 over the files of all masks, by the pictures' names."""
  digest = hashlib.sha256()
  for name in sorted(masks):
    digest.update(name.encode() + b"\0" + hashlib.sha256(masks[name].read_bytes()).digest())
  return digest.hexdigest()
