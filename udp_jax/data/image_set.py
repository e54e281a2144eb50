"""A set of clean images in memory, and deterministic ways to divide it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from udp_jax.data.captions import NONE_BESIDE, Beside
from udp_jax.errors import ConfigError


class Metadata(NamedTuple):
  """Metadata of an image file, to be saved with its protected pixels.

  Attributes:
    file: path of the file below the source folder.
    icc_profile: RGB or grey colour profile of the pixels, or None for sRGB.
    exif: EXIF block without orientation, or None.
    notes: descriptions of what reading changed, converted or left out.
    chunks: PNG chunks (type, data) to save beside the pixels.
    grey: whether the file has one colour channel, as the saved file then has too.
  """

  file: str
  icc_profile: bytes | None = None
  exif: bytes | None = None
  notes: tuple[str, ...] = ()
  chunks: tuple[tuple[bytes, bytes], ...] = ()
  grey: bool = False


class ImageSet(NamedTuple):
  """Named images of one size: the clean reference for all measurements.

  Attributes:
    images: uint8 (N, H, W, 3).
    names: N unique relative posix names without extension; nested folders kept.
    labels: int32 (N,) class indices into `origin["classes"]`, or None.
    alphas: N entries, uint8 (H, W) or None; None when no image has transparency.
    metadata: N entries, or None when the images do not come from files.
    groups: int32 (N,) or None. Images of a group may share pixels, so `split` keeps groups whole.
    origin: description of the source: "source", "count", "sha256" (of the pixel bytes),
      "classes" (names, or None), "skipped" (list of [file, reason]), and fields of its kind.
    beside: captions beside the images, to be written beside the output images.
  """

  images: np.ndarray
  names: Sequence[str]
  labels: np.ndarray | None = None
  alphas: Sequence[np.ndarray | None] | None = None
  metadata: Sequence[Metadata] | None = None
  groups: np.ndarray | None = None
  origin: dict[str, Any] = {}
  beside: Beside = NONE_BESIDE


def pixels_sha256(images: np.ndarray) -> str:
  """Returns the SHA-256 (hexadecimal) of the shape and the uint8 pixel bytes in C order.

  >>> len(pixels_sha256(np.zeros((1, 2, 2, 3), np.uint8)))
  64
  """
  digest = hashlib.sha256(repr(tuple(images.shape)).encode())
  digest.update(np.ascontiguousarray(images).data)
  return digest.hexdigest()


def finish(
  read: ImageSet, source: str, *, classes: Sequence[str] | None = None, **origin: Any
) -> ImageSet:
  """Fills in the `origin` of a loaded set and gives its fields their types.

  Args:
    read: the images and their data; fields may be sequences of any kind.
    source: description of the source.
    classes: class names that labels index, or None.
    **origin: further fields of `origin`.

  >>> finish(ImageSet(np.zeros((1, 2, 2, 3), np.uint8), ["a"]), "an example").origin["count"]
  1
  """
  images, alphas = np.ascontiguousarray(read.images), read.alphas
  return ImageSet(
    images=images,
    names=tuple(read.names),
    labels=None if read.labels is None else np.asarray(read.labels, np.int32),
    alphas=tuple(alphas) if alphas is not None and any(a is not None for a in alphas) else None,
    metadata=None if read.metadata is None else tuple(read.metadata),
    groups=None if read.groups is None else np.asarray(read.groups, np.int32),
    origin={
      "source": source,
      "count": len(images),
      "sha256": pixels_sha256(images),
      "classes": None if classes is None else [str(name) for name in classes],
      "skipped": [],
      **origin,
    },
    beside=read.beside,
  )


def take(image_set: ImageSet, indices: Sequence[int] | np.ndarray) -> ImageSet:
  """Returns the images at `indices`, in that order, and updates `origin`.

  >>> whole = finish(ImageSet(np.zeros((3, 2, 2, 3), np.uint8), ["a", "b", "c"]), "an example")
  >>> take(whole, [2, 0]).names
  ('c', 'a')
  """
  indices = np.asarray(indices, np.int64)
  images = image_set.images[indices]
  picked = [int(i) for i in indices]
  alphas, metadata = image_set.alphas, image_set.metadata
  return ImageSet(
    images=images,
    names=tuple(image_set.names[i] for i in picked),
    labels=None if image_set.labels is None else image_set.labels[indices],
    alphas=None if alphas is None else tuple(alphas[i] for i in picked),
    metadata=None if metadata is None else tuple(metadata[i] for i in picked),
    groups=None if image_set.groups is None else image_set.groups[indices],
    origin={**image_set.origin, "count": len(images), "sha256": pixels_sha256(images)},
    beside=image_set.beside,
  )


def split(image_set: ImageSet, *, holdout: int | float, seed: int) -> tuple[ImageSet, ImageSet]:
  """Divides a set into (train, held out) deterministically; both keep the set's order.

  Whole groups are held out, so no held-out image shares pixels with a training image. The last
  group may be larger than needed; its surplus is in neither part. With groups, about the same
  proportion of every label (photograph) is held out.

  Args:
    image_set: the images.
    holdout: number of images to hold out, or their fraction if it is a float below 1.
    seed: seed of the choice.

  Raises:
    ConfigError: fewer than one image would be left for training.

  >>> whole = finish(ImageSet(np.zeros((4, 2, 2, 3), np.uint8), ["a", "b", "c", "d"]), "an example")
  >>> [len(part.names) for part in split(whole, holdout=0.25, seed=0)]
  [3, 1]
  """
  count = len(image_set.images)
  wanted = round(holdout * count) if isinstance(holdout, float) else holdout
  if not 0 <= wanted < count:
    raise ConfigError(f"cannot hold out {holdout} of {count} images; at least one must be left")
  groups = np.arange(count) if image_set.groups is None else image_set.groups
  labels = np.zeros(count, np.int32) if image_set.labels is None else image_set.labels
  held: list[int] = []
  taken: list[int] = []
  for group in _group_order(groups, labels, np.random.default_rng(seed)):
    if len(held) >= wanted:
      break
    members = np.flatnonzero(groups == group).tolist()
    taken.extend(members)
    held.extend(members[: wanted - len(held)])
  if len(taken) == count:
    raise ConfigError(
      f"cannot hold out {wanted} of {count} images without dividing a group of overlapping ones"
    )
  train = take(image_set, np.setdiff1d(np.arange(count), taken))
  test = take(image_set, sorted(held))
  train.origin["part"], test.origin["part"] = "train", "held out"
  return train, test


def _group_order(
  groups: np.ndarray, labels: np.ndarray, generator: np.random.Generator
) -> list[int]:
  """Orders groups at random; a few large groups are spread so that each label keeps its share."""
  order = generator.permutation(np.unique(groups))
  if len(order) == len(groups):
    return order.tolist()
  # Sort each group by the share of its label that is held out once it is taken: this takes labels
  # in turn, whatever the sizes of their groups.
  place: dict[int, float] = {}
  seen = dict.fromkeys(np.unique(labels).tolist(), 0)
  for group in order.tolist():
    members = groups == group
    label = int(labels[members][0])
    place[group] = (seen[label] + members.sum() / 2) / (labels == label).sum()
    seen[label] += int(members.sum())
  return sorted(place, key=lambda group: place[group])


def choose(count: int, limit: int | None, seed: int) -> np.ndarray:
  """Returns sorted indices of `limit` random items out of `count`, or of all without a limit.

  >>> choose(5, None, 0).tolist(), len(choose(5, 2, 0))
  ([0, 1, 2, 3, 4], 2)
  """
  check_limit(limit)
  if limit is None or limit >= count:
    return np.arange(count)
  return np.sort(np.random.default_rng(seed).permutation(count)[:limit])


def check_limit(limit: int | None) -> None:
  """Raises ConfigError unless `limit` is None or a positive number.

  >>> check_limit(None)
  >>> check_limit(0)
  Traceback (most recent call last):
    ...
  udp_jax.errors.ConfigError: limit must be at least 1 or None, got 0
  """
  if limit is not None and limit < 1:
    raise ConfigError(f"limit must be at least 1 or None, got {limit}")


def class_indices(classes: Sequence[str], names: Sequence[str] | None, source: str) -> list[int]:
  """Returns the positions of the wanted `classes` among the source's class `names`.

  >>> class_indices(["dog"], ["cat", "dog"], "an example")
  [1]
  """
  known = [str(name) for name in names] if names is not None else []
  unknown = [name for name in classes if name not in known]
  if unknown:
    have = ", ".join(known) if known else "no named classes"
    raise ConfigError(f"{source}: no class {', '.join(unknown)}; it has {have}")
  return [known.index(name) for name in classes]
