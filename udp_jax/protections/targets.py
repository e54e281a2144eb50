"""Pictures that targeted protections drive latents to: patterns made by formula, or a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from udp_jax.data import images as image_files
from udp_jax.errors import MissingDataError

# Not a picture: the latents are zero.
ZERO = "zero"


def picture(target: str, image_shape: tuple[int, int, int]) -> np.ndarray | None:
  """The picture that a protection's option `target` means.

  Args:
    target: a name of `PATTERNS`, "zero" (latents of zero), or the path of an image file, whose
      centre is cropped and resized.
    image_shape: (H, W, 3) of the protected pictures.

  Returns:
    float32 (H, W, 3) in [0, 1], or None for "zero".

  Raises:
    MissingDataError: there is no such file.
    BadDataError: the file is damaged.
  """
  height, width = image_shape[:2]
  if target == ZERO:
    return None
  if target in PATTERNS:
    return PATTERNS[target](height, width).astype(np.float32)
  if not Path(target).is_file():
    known = ", ".join([ZERO, *PATTERNS])
    raise MissingDataError(f"target {target!r} is no image file and none of: {known}")
  side = max(height, width)
  pixels = image_files.resize_picture(image_files.read_image(target), side).pixels
  top, left = (side - height) // 2, (side - width) // 2
  cut = pixels[top : top + height, left : left + width]
  return cut.astype(np.float32) / np.float32(255)


def _grey(height: int, width: int) -> np.ndarray:
  return np.full((height, width, 3), 0.5)


def _pattern(height: int, width: int) -> np.ndarray:
  """Black and white: diagonal bars that change places from stripe to stripe.

  High contrast and repeated over the whole picture, as the picture of lettering that Mist aims at.
  """
  y, x = np.mgrid[:height, :width] / min(height, width)
  bars = np.sin(2 * np.pi * (6 * x + 3 * y))
  stripes = np.sin(2 * np.pi * 4 * y)
  return np.repeat((bars * stripes > 0)[..., None], 3, axis=-1).astype(np.float64)


def _facets(height: int, width: int, count: int = 40) -> np.ndarray:
  """Flat coloured facets with shading: what the nearest of some points says, after cubist painting.

  Points follow a low-discrepancy sequence, hues the golden angle: no randomness.
  """
  n = np.arange(1, count + 1)
  points = np.stack([(n * 0.7548776662) % 1, (n * 0.5698402910) % 1], axis=-1)
  y, x = np.mgrid[:height, :width]
  place = np.stack([(y + 0.5) / height, (x + 0.5) / width], axis=-1)
  # City-block distance has straight, angular borders.
  distance = np.abs(place[:, :, None] - points).sum(-1)
  nearest = distance.argmin(-1)
  hue = 2 * np.pi * (n * 0.6180339887) % (2 * np.pi)
  colours = 0.5 + 0.4 * np.cos(hue[:, None] - 2 * np.pi / 3 * np.arange(3))
  shade = 1.0 - 0.5 * distance.min(-1) / max(distance.min(-1).max(), 1e-9)
  return np.clip(colours[nearest] * shade[..., None], 0.0, 1.0)


PATTERNS: dict[str, Callable[[int, int], np.ndarray]] = {
  "grey": _grey,
  "pattern": _pattern,
  "facets": _facets,
}
