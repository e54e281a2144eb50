"""Cuts pictures of any size into overlapping tiles of one size, and joins them without seams.

  >>> picture = np.arange(108 * 192, dtype=np.float32).reshape(108, 192, 1)
  >>> grid = plan(108, 192, 64, overlap=8)
  >>> pieces = cut(picture, grid)
  >>> pieces.shape
  (8, 64, 64, 1)
  >>> bool(np.allclose(assemble(pieces, grid), picture))
  True

Neighbours blend over `overlap` pixels by raised cosines that sum to 1, so each pixel of the result
is a convex combination of tile values: a bound that all tiles keep, such as an L-infinity budget,
also holds for the result (up to float32 rounding). These functions run in numpy on the host:
pictures differ in size, and compiling for each size takes longer than the work.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Grid(NamedTuple):
  """Positions of a picture's tiles; tile i * len(lefts) + j begins at (tops[i], lefts[j]).

  Attributes:
    height: height of the picture, pixels.
    width: width of the picture, pixels.
    tile_size: side of a tile, pixels.
    overlap: number of pixels over which neighbours blend; they may share more.
    tops: first row of each row of tiles, increasing; negative if the picture is smaller than a
      tile, which is then filled with mirror images.
    lefts: first column of each column of tiles.
  """

  height: int
  width: int
  tile_size: int
  overlap: int
  tops: tuple[int, ...]
  lefts: tuple[int, ...]

  @property
  def num_tiles(self) -> int:
    """Number of tiles."""
    return len(self.tops) * len(self.lefts)


def plan(height: int, width: int, tile_size: int, *, overlap: int) -> Grid:
  """Places the fewest tiles that cover the picture with the given overlap, evenly spread.

  Args:
    height: height of the picture, at least 1 pixel.
    width: width of the picture, at least 1 pixel.
    tile_size: side of the square tiles, pixels.
    overlap: pixels that neighbours share, in [0, tile_size); 0 gives hard edges.

  Raises:
    ValueError: a size or the overlap is out of range.

  >>> plan(1080, 1920, 512, overlap=64).num_tiles
  15
  """
  if min(height, width, tile_size) < 1:
    raise ValueError(f"sizes must be at least 1, got {height}x{width} in tiles of {tile_size}")
  if not 0 <= overlap < tile_size:
    raise ValueError(f"overlap must be in [0, {tile_size}), got {overlap}")
  tops, lefts = (_starts(length, tile_size, overlap) for length in (height, width))
  return Grid(height, width, tile_size, overlap, tops, lefts)


def cut(picture: np.ndarray, grid: Grid) -> np.ndarray:
  """Cuts a picture (H, W, C) into tiles (num_tiles, tile_size, tile_size, C) of its dtype.

  Raises:
    ValueError: the picture differs in size from the grid.

  >>> cut(np.zeros((10, 12, 3), np.uint8), plan(10, 12, 8, overlap=2)).shape
  (4, 8, 8, 3)
  """
  if picture.ndim != 3 or picture.shape[:2] != (grid.height, grid.width):
    raise ValueError(f"the grid is for {grid.height}x{grid.width}, got {picture.shape}")
  inside = np.arange(grid.tile_size)
  rows = [_mirror(top + inside, grid.height) for top in grid.tops]
  columns = [_mirror(left + inside, grid.width) for left in grid.lefts]
  return np.stack([picture[np.ix_(row, column)] for row in rows for column in columns])


def weights(grid: Grid) -> np.ndarray:
  """Returns each tile's share of the picture, (num_tiles, tile_size, tile_size) float32 in [0, 1].

  Inside the picture the shares of all tiles sum to 1; on mirrored pixels outside they are 0.

  >>> float(weights(plan(8, 12, 8, overlap=2)).sum()) == 8 * 12
  True
  """
  vertical, horizontal = _axis_weights(grid)
  shares = vertical[:, None, :, None] * horizontal[None, :, None, :]
  return shares.reshape(grid.num_tiles, grid.tile_size, grid.tile_size)


def assemble(pieces: np.ndarray, grid: Grid) -> np.ndarray:
  """Blends tiles (num_tiles, tile_size, tile_size, C) into a picture (H, W, C), float32.

  Raises:
    ValueError: the tiles do not match the grid.

  >>> picture, grid = np.arange(96.0).reshape(8, 12, 1), plan(8, 12, 8, overlap=2)
  >>> bool(np.allclose(assemble(cut(picture, grid), grid), picture))
  True
  """
  size = grid.tile_size
  if pieces.ndim != 4 or pieces.shape[:3] != (grid.num_tiles, size, size):
    raise ValueError(f"the grid has {grid.num_tiles} tiles of {size}x{size}, got {pieces.shape}")
  vertical, horizontal = _axis_weights(grid)
  whole = np.zeros((grid.height, grid.width, pieces.shape[-1]), np.float32)
  for i, top in enumerate(grid.tops):
    in_tile, in_whole = _inside(top, size, grid.height)
    for j, left in enumerate(grid.lefts):
      columns, target = _inside(left, size, grid.width)
      share = vertical[i, in_tile, None] * horizontal[j, None, columns]
      piece = pieces[i * len(grid.lefts) + j, in_tile, columns]
      whole[in_whole, target] += share[..., None] * piece
  return whole


def _starts(length: int, tile_size: int, overlap: int) -> tuple[int, ...]:
  if length <= tile_size:
    return (-((tile_size - length) // 2),)
  number = -(-(length - overlap) // (tile_size - overlap))
  return tuple(round(i * (length - tile_size) / (number - 1)) for i in range(number))


def _mirror(positions: np.ndarray, length: int) -> np.ndarray:
  """Reflects positions into [0, length) as often as needed, without repeating the border."""
  period = max(2 * (length - 1), 1)
  folded = positions % period
  return np.minimum(folded, period - folded) if length > 1 else np.zeros_like(positions)


def _inside(start: int, size: int, length: int) -> tuple[slice, slice]:
  """Returns the part of a tile inside the picture, as slices of the tile and of the picture."""
  first, last = max(start, 0), min(start + size, length)
  return slice(first - start, last - start), slice(first, last)


def _axis_weights(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
  """Returns shares along height (rows of tiles, tile_size) and along width, float32."""
  return tuple(  # type: ignore[return-value]  # two of them
    _shares(np.asarray(starts), grid.tile_size, length, grid.overlap)
    for starts, length in ((grid.tops, grid.height), (grid.lefts, grid.width))
  )


def _shares(starts: np.ndarray, size: int, length: int, overlap: int) -> np.ndarray:
  """Returns tile shares as differences of rising steps, one step centred in each overlap.

  Step i rises from 0 to 1; the share of tile i is step i minus step i + 1. All steps have the same
  shape, so no difference is negative, and the shares sum to 1 by telescoping.
  """
  positions = starts[:, None] + np.arange(size)
  middles = (starts[1:] + starts[:-1] + size) / 2
  # Pixel centres in units of the blended band: 0 at its beginning, 1 at its end.
  along = positions + 0.5

  def step(middle: np.ndarray) -> np.ndarray:
    if overlap == 0:
      return (along >= middle[:, None]).astype(np.float64)
    phase = np.clip((along - middle[:, None]) / overlap + 0.5, 0.0, 1.0)
    return 0.5 - 0.5 * np.cos(np.pi * phase)

  # The first tile's step lies before the picture, the last one's after it.
  rising = step(np.concatenate([[-np.inf], middles]))
  falling = step(np.concatenate([middles, [np.inf]]))
  shares = np.where((positions >= 0) & (positions < length), rising - falling, 0.0)
  return shares.astype(np.float32)
