"""Finds where a change in a picture is visible: in flat areas, where no texture hides it.

Computations use 8-bit levels in host memory and integers, so that a picture gives the same result
on every machine and in every program.
"""

from __future__ import annotations

import numpy as np

# Side of the window in pixels, and the standard deviation in levels that hides the full budget.
WINDOW = 7
FULL_CONTRAST_255 = 16.0
# Number of rows processed together, as pictures may have a hundred megapixels.
_ROWS = 256


def local_contrast(levels: np.ndarray) -> np.ndarray:
  """Returns, per pixel, the least standard deviation over the 7x7 windows that contain it.

  The *least* one matters: a flat-area pixel beside a line lies in some window without the line, and
  a change there is as visible as elsewhere in the area. Borders continue by mirroring.

  Args:
    levels: (H, W, C) uint8, the picture.

  Returns:
    (H, W) float64, in levels: root of the variance over a window, averaged over channels.

  Raises:
    TypeError: `levels` are not uint8 (H, W, C).

  >>> float(local_contrast(np.full((9, 9, 3), 128, np.uint8)).max())
  0.0
  """
  if levels.dtype != np.uint8 or levels.ndim != 3:
    raise TypeError(f"expected uint8 levels (H, W, C), got {levels.dtype} {levels.shape}")
  reach = WINDOW - 1  # Distance from a pixel to the far end of the windows that contain it.
  padded = np.pad(levels, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
  parts = []
  for start in range(0, len(levels), _ROWS):
    part = padded[start : start + min(_ROWS, len(levels) - start) + 2 * reach]
    variance = np.zeros((len(part) - reach, part.shape[1] - reach), np.int64)
    for channel in range(levels.shape[2]):
      values = part[..., channel].astype(np.int32)
      total = _windows(values, np.add).astype(np.int64)
      variance += WINDOW**2 * _windows(values * values, np.add).astype(np.int64) - total * total
    parts.append(_windows(variance, np.minimum))
  return np.sqrt(np.concatenate(parts) / levels.shape[2]) / WINDOW**2


def _windows(values: np.ndarray, combine: np.ufunc) -> np.ndarray:
  """Reduces every whole window of (H, W) with `combine`: (H - 6, W - 6)."""
  height, width = (length - WINDOW + 1 for length in values.shape)
  rows = values[:height].copy()
  for offset in range(1, WINDOW):
    combine(rows, values[offset : offset + height], out=rows)
  result = rows[:, :width].copy()
  for offset in range(1, WINDOW):
    combine(result, rows[:, offset : offset + width], out=result)
  return result


def spared_limit(levels: np.ndarray, radius_255: float, *, strength: float) -> np.ndarray:
  """Returns the largest change allowed at every pixel, smaller where a change is visible.

  limit = floor(radius_255 * (1 - strength * (1 - min(1, local_contrast / 16))))

  Args:
    levels: (H, W, C) uint8, the clean picture.
    radius_255: budget in 8-bit levels, 0 to 255.
    strength: strength of the reduction, in [0, 1]; 0 gives every pixel the full budget, 1 gives
      perfectly flat areas none.

  Returns:
    (H, W, 1) uint8, in 8-bit levels.

  Raises:
    ValueError: `strength` is not in [0, 1].

  >>> import numpy as np
  >>> white = np.full((9, 9, 3), 255, np.uint8)
  >>> int(spared_limit(white, 16, strength=0.75).max())
  4
  """
  if not 0 <= strength <= 1:
    raise ValueError(f"strength is {strength}: it must be in [0, 1]")
  hidden = np.minimum(1.0, local_contrast(levels) / FULL_CONTRAST_255)
  return np.floor(radius_255 * (1.0 - strength * (1.0 - hidden))).astype(np.uint8)[..., None]
