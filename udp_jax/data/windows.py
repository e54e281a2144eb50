"""Random square windows of large pictures, for models that are smaller than the pictures.

Fine-tuning a model of 64x64 pixels on five paintings takes more than five pictures. Each picture
gives windows of many sizes and places; they are one group of the set, so that `split` holds whole
pictures out and no held-out window shares a pixel with one that is learned.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from udp_jax.data import folder, image_set, images
from udp_jax.data.image_set import ImageSet
from udp_jax.errors import ConfigError

# Windows of each picture of a `windows:PATH` source, and the shortest side, in picture pixels.
EACH = 32
SMALLEST = 112


def load_windows(
  place: str | os.PathLike,
  *,
  image_size: int | None,
  limit: int | None,
  seed: int,
  strict: bool,
  classes: Sequence[str] | None,
) -> ImageSet:
  """Cuts `EACH` windows of every picture in a folder; arguments and errors as in `sources.load`.

  Labels and classes are the folder's. `limit` counts windows.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   images.write_png(f"{place}/a.png", np.zeros((200, 150, 3), np.uint8))
  ...   options = {"limit": None, "seed": 0, "strict": True, "classes": None}
  ...   load_windows(place, image_size=16, **options).images.shape
  (32, 16, 16, 3)
  """
  if image_size is None:
    raise ConfigError(f"windows:{place}: windows have one size: set image_size")
  size = image_size
  generator = np.random.default_rng(seed)

  def keep(picture: images.Picture) -> list[np.ndarray]:
    return cut(generator, picture.pixels, EACH, size, SMALLEST)

  found = folder.select(
    Path(place), limit=None, seed=seed, strict=strict, classes=classes, keep=keep
  )
  names = found.class_names
  labels = [names.index(file.relative.split("/")[0]) if names else 0 for file in found.files]
  whole = ImageSet(
    np.stack([window for windows in found.kept for window in windows]),
    [f"{file.name}/{index:03d}" for file in found.files for index in range(EACH)],
    labels=np.repeat(labels, EACH) if names else None,
    groups=np.repeat(np.arange(len(found.files)), EACH),
  )
  chosen = image_set.choose(len(whole.images), limit, seed)
  source = f"{EACH} random windows of each picture in {Path(place).name}"
  return image_set.take(image_set.finish(whole, source, classes=names or None), chosen)


def cut(
  generator: np.random.Generator, picture: np.ndarray, count: int, size: int, smallest: int
) -> list[np.ndarray]:
  """Cuts random squares, their side log-uniform from `smallest` to the shorter side of the picture.

  Args:
    generator: where places and sides are drawn.
    picture: uint8 (H, W, 3).
    count: number of windows.
    size: side of the results, in pixels.
    smallest: shortest side of a window in the picture; a smaller picture has its own.

  Returns:
    `count` pictures, uint8 (size, size, 3).

  >>> generator = np.random.default_rng(0)
  >>> cut(generator, np.zeros((40, 30, 3), np.uint8), 2, 8, 16)[0].shape
  (8, 8, 3)
  """
  height, width = picture.shape[:2]
  largest = min(height, width)
  sides = np.exp(generator.uniform(np.log(min(smallest, largest)), np.log(largest), count))
  found = []
  for side in sides.round().astype(int):
    top = generator.integers(0, height - side + 1)
    left = generator.integers(0, width - side + 1)
    window = images.Picture(picture[top : top + side, left : left + side])
    found.append(images.resize_picture(window, size).pixels)
  return found
