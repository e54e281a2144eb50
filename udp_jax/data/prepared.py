"""Reads prepared TensorFlow Datasets data sets without TensorFlow (`tfds.data_source`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from udp_jax.data import image_set, images, npz
from udp_jax.data.image_set import ImageSet
from udp_jax.errors import BadDataError, ConfigError, MissingDataError


def load_tfds(
  place: str,
  *,
  image_size: int | None,
  limit: int | None,
  seed: int,
  classes: Sequence[str] | None,
) -> ImageSet:
  """Reads `NAME[:SPLIT][@DATA_DIR]`; other arguments and errors as in `sources.load`.

  The data set must have an "image" feature and be prepared in the `array_record` format (preparing
  needs TensorFlow, reading does not). SPLIT is "train" by default; the name may include a version,
  as in `mnist/3.0.1:test`.

  >>> try:
  ...   load_tfds("no_such_set@/nowhere", image_size=None, limit=None, seed=0, classes=None)
  ... except MissingDataError:
  ...   print("not prepared")
  not prepared
  """
  name_and_split, _, data_dir = place.partition("@")
  name, _, part = name_and_split.partition(":")
  part = part or "train"
  source = _open(name, part, data_dir or None)
  info = source.dataset_info
  if "image" not in info.features:
    have = ", ".join(sorted(info.features))
    raise ConfigError(f"tfds:{name} has no feature 'image' (it has {have}); use an image data set")
  label_feature = info.features["label"] if "label" in info.features else None
  class_names = list(getattr(label_feature, "names", None) or ()) or None
  selected = np.arange(len(source))
  if classes is not None:
    wanted = image_set.class_indices(classes, class_names, f"tfds:{name}")
    kept = [i for i in range(len(source)) if int(source[i]["label"]) in wanted]
    selected = np.array(kept, np.int64)
  if not len(selected):
    raise MissingDataError(f"tfds:{name}: no images in split {part!r} (of these classes)")
  chosen = selected[image_set.choose(len(selected), limit, seed)]
  records = [source[int(i)] for i in chosen]
  labels = np.array([int(record["label"]) for record in records]) if class_names else None
  return image_set.finish(
    ImageSet(
      _stack(name, [_rgb(name, record["image"]) for record in records], image_size),
      npz.numbered_names(chosen.tolist(), labels, class_names),
      labels,
    ),
    f"TFDS {info.full_name} split {part}",
    classes=class_names,
  )


def _open(name: str, part: str, data_dir: str | None) -> Any:
  """Opens the random-access source, or raises one clear line about what is missing."""
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise MissingDataError(
      f"tfds:{name}: {error}; install it by pip install 'udp-jax[tfds]'"
    ) from error
  where = data_dir or "the default data folder (TFDS_DATA_DIR or ~/tensorflow_datasets)"
  how = (
    "prepare it where TensorFlow is installed: tfds.builder(NAME, data_dir=DIR, "
    "file_format='array_record').download_and_prepare(), then give tfds:NAME@DIR"
  )
  try:
    # download=False: a reader must never download or prepare anything by itself.
    return tfds.data_source(name, split=part, data_dir=data_dir, download=False)
  except ImportError as error:
    raise MissingDataError(f"tfds:{name}: reading it needs {error.name or error}; {how}") from error
  except (LookupError, AttributeError, OSError, ValueError, NotImplementedError) as error:
    # Keep the first sentence: the rest lists all known data sets, or guesses.
    reason = " ".join(str(error).split()).split(". ")[0] or type(error).__name__
    raise MissingDataError(
      f"tfds:{name}: no prepared data set with split {part!r} in {where} ({reason}); {how}"
    ) from error


def _rgb(name: str, image: Any) -> np.ndarray:
  image = np.asarray(image)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
    raise BadDataError(
      f"tfds:{name}: images must be uint8 (H, W, 3) or (H, W, 1), got {image.dtype} {image.shape}"
    )
  return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def _stack(name: str, pictures: Sequence[np.ndarray], image_size: int | None) -> np.ndarray:
  if image_size is not None:
    pictures = [images.resize_picture(images.Picture(p), image_size).pixels for p in pictures]
  if len({picture.shape for picture in pictures}) != 1:
    raise ConfigError(f"tfds:{name}: images of different sizes; set image_size to make them one")
  return np.stack(pictures)
