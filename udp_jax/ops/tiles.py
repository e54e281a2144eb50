"""Pictures of any size as overlapping tiles of one size, and back without a seam.

  grid = tiles.plan(1080, 1920, 512, overlap=64)
  pieces = tiles.cut(picture, grid)             # (15, 512, 512, C)
  whole = tiles.assemble(pieces, grid)          # (1080, 1920, C), the picture again

Neighbours blend over `overlap` pixels by raised cosines that sum to 1, so a pixel of the whole is a
convex combination of the tiles' values there: what no tile exceeds, such as an L-infinity budget,
the whole does not exceed (to float32 rounding). These functions run in numpy on the host: every
picture has a size of its own, and compiling for each takes longer than the work.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Grid(NamedTuple):
  """Where the tiles of one picture lie; tile i * len(lefts) + j begins at (tops[i], lefts[j]).

  Attributes:
    height: of the picture, pixels.
    width: of the picture, pixels.
    tile_size: side of a tile, pixels.
    overlap: pixels over which neighbours blend; they may share more.
    tops: first row of each row of tiles, increasing; negative where the picture is smaller than a
      tile, which is then filled with its mirror images.
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
  """As few tiles as cover the picture with at least `overlap` shared pixels, spread evenly.

  Args:
    height: at least 1 pixel.
    width: at least 1 pixel.
    tile_size: side of the square tiles, pixels.
    overlap: in [0, tile_size). 0 blends nothing: tiles then meet at a hard edge.

  Raises:
    ValueError: a size or the overlap is out of range.
  """
  if min(height, width, tile_size) < 1:
    raise ValueError(f"sizes must be at least 1, got {height}x{width} in tiles of {tile_size}")
  if not 0 <= overlap < tile_size:
    raise ValueError(f"overlap must be in [0, {tile_size}), got {overlap}")
  tops, lefts = (_starts(length, tile_size, overlap) for length in (height, width))
  return Grid(height, width, tile_size, overlap, tops, lefts)


def cut(picture: np.ndarray, grid: Grid) -> np.ndarray:
  """Tiles (num_tiles, tile_size, tile_size, C) of a picture (H, W, C), in its dtype.

  Raises:
    ValueError: the picture is not of the grid's size.
  """
  if picture.ndim != 3 or picture.shape[:2] != (grid.height, grid.width):
    raise ValueError(f"the grid is for {grid.height}x{grid.width}, got {picture.shape}")
  inside = np.arange(grid.tile_size)
  rows = [_mirror(top + inside, grid.height) for top in grid.tops]
  columns = [_mirror(left + inside, grid.width) for left in grid.lefts]
  return np.stack([picture[np.ix_(row, column)] for row in rows for column in columns])


def weights(grid: Grid) -> np.ndarray:
  """Each tile's share of the whole, (num_tiles, tile_size, tile_size) float32 in [0, 1].

  Over the picture the shares of all tiles sum to 1; they are 0 on mirrored pixels outside of it.
  """
  vertical, horizontal = _axis_weights(grid)
  shares = vertical[:, None, :, None] * horizontal[None, :, None, :]
  return shares.reshape(grid.num_tiles, grid.tile_size, grid.tile_size)


def assemble(pieces: np.ndarray, grid: Grid) -> np.ndarray:
  """The picture (H, W, C), float32, of tiles (num_tiles, tile_size, tile_size, C), feathered.

  Raises:
    ValueError: the tiles are not the grid's.
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
  """Positions reflected into [0, length) as often as needed, without repeating the border."""
  period = max(2 * (length - 1), 1)
  folded = positions % period
  return np.minimum(folded, period - folded) if length > 1 else np.zeros_like(positions)


def _inside(start: int, size: int, length: int) -> tuple[slice, slice]:
  """The part of a tile that lies in the picture: as a slice of the tile and of the picture."""
  first, last = max(start, 0), min(start + size, length)
  return slice(first - start, last - start), slice(first, last)


def _axis_weights(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
  """Shares along the height (rows of tiles, tile_size) and along the width, float32."""
  return tuple(  # type: ignore[return-value]  # two of them
    _shares(np.asarray(starts), grid.tile_size, length, grid.overlap)
    for starts, length in ((grid.tops, grid.height), (grid.lefts, grid.width))
  )


def _shares(starts: np.ndarray, size: int, length: int, overlap: int) -> np.ndarray:
  """Differences of rising steps, one in the middle of what each pair of neighbours shares.

  Step i is 0 before and 1 after; the share of tile i is step i minus step i + 1. All steps have the
  same shape, so no difference is negative, and their sum telescopes to 1.
  """
  positions = starts[:, None] + np.arange(size)
  middles = (starts[1:] + starts[:-1] + size) / 2
  # Centres of pixels, in units of the blended band, 0 at its beginning and 1 at its end.
  along = positions + 0.5

  def step(middle: np.ndarray) -> np.ndarray:
    if overlap == 0:
      return (along >= middle[:, None]).astype(np.float64)
    phase = np.clip((along - middle[:, None]) / overlap + 0.5, 0.0, 1.0)
    return 0.5 - 0.5 * np.cos(np.pi * phase)

  # Before the first tile's step is all of the picture, after the last one's nothing.
  rising = step(np.concatenate([[-np.inf], middles]))
  falling = step(np.concatenate([middles, [np.inf]]))
  shares = np.where((positions >= 0) & (positions < length), rising - falling, 0.0)
  return shares.astype(np.float32)
