"""Crops of the nine real photographs inside the scikit-image and scikit-learn wheels.

They give a new user real, textured pictures, licensed for reuse, without a download. They serve for
demonstrations only: nine photographs are too few for a meaningful Frechet distance.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from udp_jax.data import image_set, images
from udp_jax.data.image_set import ImageSet
from udp_jax.errors import ConfigError, MissingDataError

PHOTOGRAPHS = {
  "astronaut": ("skimage", "data/astronaut.png"),
  "cat": ("skimage", "data/chelsea.png"),
  "china": ("sklearn", "datasets/images/china.jpg"),
  "coffee": ("skimage", "data/coffee.png"),
  "flower": ("sklearn", "datasets/images/flower.jpg"),
  "hubble": ("skimage", "data/hubble_deep_field.jpg"),
  "immunohistochemistry": ("skimage", "data/ihc.png"),
  "retina": ("skimage", "data/retina.jpg"),
  "rocket": ("skimage", "data/rocket.jpg"),
}
MAX_PER_PHOTOGRAPH = 200

# Side lengths, in photograph pixels, of the windows that become 32-pixel crops. Larger windows show
# more, so they come first. Windows scale with image_size, so that crops are never enlarged.
_WINDOWS = (144, 112, 80, 60, 48)
_MAX_OVERLAP = 0.25  # of the area, between windows of one size
_MIN_DEVIATION = 12.0  # grey levels over the finished crop; sky and dark space have less
_ORDER_SEED = 20240  # fixed: the set is the same for every seed, and limits choose from it


def load_builtin(
  *, image_size: int | None, limit: int | None, seed: int, classes: Sequence[str] | None
) -> ImageSet:
  """Loads the built-in crops; arguments and errors as in `sources.load`, default image_size 32.

  Every photograph is divided into blocks, and no crop crosses the border of a block. The blocks are
  the set's `groups`, so the parts of a `split` share no pixel. `labels` number the photographs.

  >>> load_builtin(image_size=32, limit=2, seed=0, classes=None).images.shape
  (2, 32, 32, 3)
  """
  size = 32 if image_size is None else image_size
  if size < 1:
    raise ConfigError(f"image_size must be at least 1, got {size}")
  wanted = list(PHOTOGRAPHS)
  if classes is not None:
    image_set.class_indices(classes, wanted, "builtin")
  crops: list[np.ndarray] = []
  names: list[str] = []
  labels: list[int] = []
  groups: list[int] = []
  for label, photograph in enumerate(wanted):
    if classes is not None and photograph not in classes:
      continue
    pixels = images.read_pixels(find_photograph(photograph))
    for index, (block, crop) in enumerate(_photograph_crops(pixels, size)):
      crops.append(crop)
      names.append(f"{photograph}/{index:04d}")
      labels.append(label)
      groups.append(1000 * label + block)
  if not crops:
    raise ConfigError(f"builtin: no photograph is large enough for image_size={size}; use 256")
  chosen = image_set.choose(len(crops), limit, seed)
  return image_set.finish(
    ImageSet(
      np.stack([crops[i] for i in chosen]),
      [names[i] for i in chosen],
      labels=np.array(labels, np.int32)[chosen],
      groups=np.array(groups, np.int32)[chosen],
    ),
    "builtin: crops of the photographs inside scikit-image and scikit-learn",
    classes=wanted,
  )


def shrunk(pixels: np.ndarray, shorter_side: int) -> np.ndarray:
  """Shrinks a picture, uint8 (H, W, 3), so that its shorter side has so many pixels (Lanczos).

  Raises:
    ConfigError: the side is not from 1 to that of the picture.

  >>> shrunk(np.zeros((30, 45, 3), np.uint8), 20).shape
  (20, 30, 3)
  """
  height, width = pixels.shape[:2]
  shortest = min(height, width)
  if not 1 <= shorter_side <= shortest:
    raise ConfigError(f"a photograph of {width}x{height} cannot be shrunk to {shorter_side} pixels")
  size = (round(width * shorter_side / shortest), round(height * shorter_side / shortest))
  return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def find_photograph(name: str) -> Path:
  """Finds the path of a photograph in its installed package without importing the package.

  Raises:
    ConfigError: there is no such photograph.
    MissingDataError: its package is not installed.

  >>> find_photograph("astronaut").name
  'astronaut.png'
  """
  if name not in PHOTOGRAPHS:
    raise ConfigError(f"unknown photograph {name!r}; known: {', '.join(sorted(PHOTOGRAPHS))}")
  package, relative = PHOTOGRAPHS[name]
  spec = importlib.util.find_spec(package)
  roots = list(spec.submodule_search_locations or ()) if spec is not None else []
  for root in roots:
    if (Path(root) / relative).is_file():
      return Path(root) / relative
  wheel = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
  where = f"{roots[0]}/{relative}" if roots else f"package {package}, which is not installed"
  raise MissingDataError(
    f"builtin photograph {name!r} of {wheel} not found: looked for {where}; "
    "install it by pip install 'udp-jax[eval]'"
  )


def _photograph_crops(photograph: np.ndarray, size: int) -> list[tuple[int, np.ndarray]]:
  """Cuts up to `MAX_PER_PHOTOGRAPH` distinct, textured (block, crop) pairs, in reading order."""
  generator = np.random.default_rng(_ORDER_SEED)
  scale = max(1.0, size / 32)
  kept: dict[tuple[int, int, int], tuple[int, np.ndarray]] = {}
  distinct: set[bytes] = set()
  for window in [round(scale * window) for window in _WINDOWS]:
    places = list(_windows(photograph.shape[:2], window, round(scale * _WINDOWS[0])))
    for index in generator.permutation(len(places)):
      if len(kept) == MAX_PER_PHOTOGRAPH:
        break
      block, top, left = places[index]
      picture = images.Picture(photograph[top : top + window, left : left + window])
      crop = images.resize_picture(picture, size).pixels
      if crop.mean(axis=-1).std() < _MIN_DEVIATION or crop.tobytes() in distinct:
        continue
      distinct.add(crop.tobytes())
      kept[block, window, len(kept)] = (block, crop)
  return [kept[place] for place in sorted(kept)]


def _windows(shape: tuple[int, ...], window: int, block: int) -> Iterator[tuple[int, int, int]]:
  """Yields (block number, top, left) of square windows inside blocks of about `block` pixels."""
  row_edges = _edges(shape[0], block)
  column_edges = _edges(shape[1], block)
  number = -1
  for top, bottom in zip(row_edges, row_edges[1:]):
    for left, right in zip(column_edges, column_edges[1:]):
      number += 1
      for y in _starts(bottom - top, window):
        for x in _starts(right - left, window):
          yield number, top + y, left + x


def _edges(length: int, block: int) -> list[int]:
  count = max(1, length // block)
  return [round(i * length / count) for i in range(count + 1)]


def _starts(length: int, window: int) -> list[int]:
  """Spreads window starts evenly along a side; neighbours overlap by at most a quarter."""
  if length < window:
    return []
  count = 1 + int((length - window) / ((1 - _MAX_OVERLAP) * window))
  if count == 1:
    return [(length - window) // 2]
  return [i * (length - window) // (count - 1) for i in range(count)]
