"""Loads clean images with one function from six kinds of source.

| spec | source |
|---|---|
| `builtin` | crops of the photographs inside the scikit-image and scikit-learn wheels |
| `folder:PATH` or the path of a folder | image files, nested folders included |
| `windows:PATH` | random square windows of the pictures in a folder |
| `npz:PATH` or `*.npz` | arrays `images`, `labels`, `names`, or packed JPEG scans |
| `cifar10:PATH`, `cifar10-test:PATH` | `cifar-10-binary.tar.gz`, its folder, or `.bin` files |
| `tfds:NAME[:SPLIT][@DATA_DIR]` | a prepared TFDS data set, read without TensorFlow |
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from udp_jax.data.image_set import ImageSet, Metadata, pixels_sha256, split, take
from udp_jax.errors import ConfigError, MissingDataError

__all__ = ["ImageSet", "Metadata", "load", "pixels_sha256", "split", "take"]


class _Options(TypedDict):
  image_size: int | None
  limit: int | None
  seed: int
  classes: Sequence[str] | None


def load(
  spec: str | os.PathLike,
  *,
  image_size: int | None = None,
  limit: int | None = None,
  seed: int = 0,
  strict: bool = False,
  classes: Sequence[str] | None = None,
) -> ImageSet:
  """Loads the clean reference: uint8 images of one size, resized and quantised once.

  Args:
    spec: one of the forms in the table above.
    image_size: side in pixels to which images are centre-cropped and resized; None keeps the
      source's size, which must be the same for all (`builtin` then uses 32).
    limit: largest number of images: a random subset chosen by `seed`, in the source's order.
    seed: seed of the choice made by `limit`; it affects nothing else.
    strict: whether an unusable file in a folder is an error; if not, it is skipped with a warning.
    classes: names of the classes to load, as in `("automobile",)`; None loads all.

  Raises:
    MissingDataError: the source does not exist; the message says where we looked and how to get it.
    BadDataError: the source exists but is unusable.
    ConfigError: the arguments do not fit the source.

  >>> load("builtin", image_size=32, limit=3).images.shape
  (3, 32, 32, 3)
  """
  text = os.fspath(spec)
  if image_size is not None and image_size < 1:
    raise ConfigError(f"image_size must be at least 1 or None, got {image_size}")
  if isinstance(classes, str):
    classes = (classes,)
  options: _Options = {
    "image_size": image_size,
    "limit": limit,
    "seed": seed,
    "classes": classes,
  }
  kind, colon, place = text.partition(":")
  # Import each kind only when it is used: a folder needs neither tarfile nor TFDS.
  if text == "builtin":
    from udp_jax.data import builtin

    return builtin.load_builtin(**options)
  if colon and kind == "folder":
    from udp_jax.data import folder

    return folder.load_folder(_path(place), strict=strict, **options)
  if colon and kind == "windows":
    from udp_jax.data import windows

    return windows.load_windows(_path(place), strict=strict, **options)
  if colon and kind == "npz":
    from udp_jax.data import npz

    return npz.load_npz(_path(place), **options)
  if colon and kind in ("cifar10", "cifar10-test"):
    from udp_jax.data import cifar

    part = "test" if kind == "cifar10-test" else "train"
    return cifar.load_cifar10(_path(place), part=part, **options)
  if colon and kind == "tfds":
    from udp_jax.data import prepared

    return prepared.load_tfds(place, **options)
  if text.endswith(".npz"):
    return load(f"npz:{text}", strict=strict, **options)
  if _path(text).is_dir():
    return load(f"folder:{text}", strict=strict, **options)
  if os.sep in text or _path(text).exists():
    what = "is a file, not a folder" if _path(text).exists() else "no such folder"
    raise MissingDataError(f"{text}: {what}; give a folder of images, an .npz file or a source")
  raise ConfigError(
    f"unknown source {text!r}; use builtin, folder:PATH, windows:PATH, npz:PATH, cifar10:PATH, "
    "cifar10-test:PATH or tfds:NAME"
  )


def _path(place: str) -> Path:
  return Path(place).expanduser()
