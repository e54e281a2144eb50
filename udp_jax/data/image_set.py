"""A set of clean images in memory, and its deterministic division."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np

from udp_jax.data.captions import NONE_BESIDE, Beside
from udp_jax.errors import ConfigError


class Metadata(NamedTuple):
  """What is kept of an image's own file, to be saved beside its protected pixels.

  Attributes:
    file: the path below the source folder.
    icc_profile: RGB or grey colour profile of the pixels, or None for sRGB.
    exif: EXIF block without orientation, or None.
    notes: what reading changed, converted or left out.
    chunks: PNG chunks (type, data) to be saved beside the pixels.
    grey: the file has one colour channel, and so has the one that is saved.
  """

  file: str
  icc_profile: bytes | None = None
  exif: bytes | None = None
  notes: tuple[str, ...] = ()
  chunks: tuple[tuple[bytes, bytes], ...] = ()
  grey: bool = False


class ImageSet(NamedTuple):
  """Images of one size with their names: the clean reference that everything is measured against.

  Attributes:
    images: uint8 (N, H, W, 3).
    names: N unique relative posix names without extension; nested folders kept.
    labels: int32 (N,) class indices into `origin["classes"]`, or None.
    alphas: N entries, uint8 (H, W) or None; None when no image has transparency.
    metadata: N entries, or None when the images do not come from files.
    groups: int32 (N,) or None. Images of one group may share pixels, so `split` never divides it.
    origin: the source in words and numbers: "source", "count", "sha256" (of the pixel bytes),
      "classes" (names, or None), "skipped" (list of [file, reason]) and more by kind.
    beside: captions that stand beside the images, to be written beside those made of them.
  """

  images: np.ndarray
  names: tuple[str, ...]
  labels: np.ndarray | None = None
  alphas: tuple[np.ndarray | None, ...] | None = None
  metadata: tuple[Metadata, ...] | None = None
  groups: np.ndarray | None = None
  origin: dict[str, Any] = {}
  beside: Beside = NONE_BESIDE


def pixels_sha256(images: np.ndarray) -> str:
  """SHA-256 of the shape and the uint8 pixel bytes in C order, as hexadecimal text."""
  digest = hashlib.sha256(repr(tuple(images.shape)).encode())
  digest.update(np.ascontiguousarray(images).data)
  return digest.hexdigest()


def finish(
  images: np.ndarray,
  names: Sequence[str],
  source: str,
  *,
  labels: np.ndarray | None = None,
  alphas: Sequence[np.ndarray | None] | None = None,
  metadata: Sequence[Metadata] | None = None,
  groups: np.ndarray | None = None,
  classes: Sequence[str] | None = None,
  beside: Beside = NONE_BESIDE,
  **origin: Any,
) -> ImageSet:
  """An `ImageSet` with its `origin` filled in: every source ends here."""
  return ImageSet(
    images=np.ascontiguousarray(images),
    names=tuple(names),
    labels=None if labels is None else np.asarray(labels, np.int32),
    alphas=tuple(alphas) if alphas is not None and any(a is not None for a in alphas) else None,
    metadata=None if metadata is None else tuple(metadata),
    groups=None if groups is None else np.asarray(groups, np.int32),
    origin={
      "source": source,
      "count": len(images),
      "sha256": pixels_sha256(images),
      "classes": None if classes is None else [str(name) for name in classes],
      "skipped": [],
      **origin,
    },
    beside=beside,
  )


def take(image_set: ImageSet, indices: Sequence[int] | np.ndarray) -> ImageSet:
  """The images at `indices`, in that order, with `origin` recounted."""
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
  """Divides a set into (train, held out), deterministically; both keep the set's order.

  Whole groups are held out, so no held-out image shares pixels with a training image. The last
  group taken may be larger than needed: its surplus is in neither part. With groups, every label
  (photograph) is held out in about the same proportion.

  Args:
    image_set: the images.
    holdout: how many images to hold out; a float below 1 is a fraction.
    seed: of the choice.

  Raises:
    ConfigError: fewer than one image would be left for training.
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
  """Groups in random order; a few large ones are mixed so that every label keeps its share."""
  order = generator.permutation(np.unique(groups))
  if len(order) == len(groups):
    return order.tolist()
  # A group stands where it would bring its own label's held-out share to: sorting by that place
  # takes labels in turn, however large their groups are.
  place: dict[int, float] = {}
  seen = dict.fromkeys(np.unique(labels).tolist(), 0)
  for group in order.tolist():
    members = groups == group
    label = int(labels[members][0])
    place[group] = (seen[label] + members.sum() / 2) / (labels == label).sum()
    seen[label] += int(members.sum())
  return sorted(place, key=lambda group: place[group])


def choose(count: int, limit: int | None, seed: int) -> np.ndarray:
  """Sorted indices of a random subset of `limit` out of `count`; all of them without a limit."""
  check_limit(limit)
  if limit is None or limit >= count:
    return np.arange(count)
  return np.sort(np.random.default_rng(seed).permutation(count)[:limit])


def check_limit(limit: int | None) -> None:
  """Raises ConfigError unless `limit` is None or a positive number."""
  if limit is not None and limit < 1:
    raise ConfigError(f"limit must be at least 1 or None, got {limit}")


def class_indices(classes: Sequence[str], names: Sequence[str] | None, source: str) -> list[int]:
  """Positions of the wanted `classes` in the source's class `names`."""
  known = [str(name) for name in names] if names is not None else []
  unknown = [name for name in classes if name not in known]
  if unknown:
    have = ", ".join(known) if known else "no named classes"
    raise ConfigError(f"{source}: no class {', '.join(unknown)}; it has {have}")
  return [known.index(name) for name in classes]


def is_safe_name(name: Any) -> bool:
  """Whether a relative posix name stays below the folder it is joined to and is not hidden."""
  if not isinstance(name, str) or "\0" in name or PurePath(name).drive:
    return False
  if os.sep == "\\" and "\\" in name:
    return False
  return not any(part == "" or part.startswith(".") for part in name.split("/"))
