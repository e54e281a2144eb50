"""Tiles: cutting and assembling give the picture back, shares sum to one, borders do not show."""

from __future__ import annotations

import numpy as np
import pytest

from udp_jax.ops import tiles

# (height, width, tile_size, overlap): smaller than a tile, equal, one more, many, odd, no overlap.
SIZES = [
  (1, 1, 8, 2),
  (1, 30, 8, 3),
  (3, 5, 8, 2),
  (8, 8, 8, 2),
  (9, 8, 8, 2),
  (15, 17, 8, 4),
  (40, 23, 8, 7),
  (61, 100, 16, 2),
  (31, 33, 16, 0),
  (5, 7, 1, 0),
]


def _picture(height: int, width: int) -> np.ndarray:
  return np.random.default_rng(height * 1000 + width).random((height, width, 3), np.float32)


@pytest.mark.parametrize(("height", "width", "tile_size", "overlap"), SIZES)
def test_assembling_what_was_cut_gives_the_picture(height, width, tile_size, overlap) -> None:
  grid = tiles.plan(height, width, tile_size, overlap=overlap)
  picture = _picture(height, width)
  pieces = tiles.cut(picture, grid)
  assert pieces.shape == (grid.num_tiles, tile_size, tile_size, 3) and pieces.dtype == np.float32
  np.testing.assert_allclose(tiles.assemble(pieces, grid), picture, rtol=0, atol=1e-6)
  levels = (255 * picture).astype(np.uint8)
  whole = tiles.assemble(tiles.cut(levels, grid), grid)
  np.testing.assert_array_equal(np.rint(whole), levels)


def test_every_small_size() -> None:
  for height in range(1, 20):
    for width in (1, 2, 6, 13):
      for tile_size, overlap in ((4, 1), (6, 4)):
        grid = tiles.plan(height, width, tile_size, overlap=overlap)
        picture = _picture(height, width)
        whole = tiles.assemble(tiles.cut(picture, grid), grid)
        np.testing.assert_allclose(whole, picture, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width", "tile_size", "overlap"), SIZES)
def test_shares_sum_to_one_and_none_is_negative(height, width, tile_size, overlap) -> None:
  grid = tiles.plan(height, width, tile_size, overlap=overlap)
  shares = tiles.weights(grid)
  assert shares.min() >= 0 and shares.max() <= 1
  total = np.zeros((height, width))
  for share, (top, left) in zip(shares, [(y, x) for y in grid.tops for x in grid.lefts]):
    for i, j in zip(*np.nonzero(share)):
      total[top + i, left + j] += share[i, j]  # An index outside would be an error, or not 1.
  np.testing.assert_allclose(total, 1.0, rtol=0, atol=1e-6)
  ones = np.ones((grid.num_tiles, tile_size, tile_size, 1), np.float32)
  np.testing.assert_allclose(tiles.assemble(ones, grid), 1.0, rtol=0, atol=1e-6)


def test_neighbours_share_at_least_the_overlap_and_cover_the_picture() -> None:
  for length in range(9, 80):
    grid = tiles.plan(length, 8, 8, overlap=3)
    strides = np.diff(grid.tops)
    assert grid.tops[0] == 0 and grid.tops[-1] == length - 8
    assert strides.max() <= 5 and strides.max() - strides.min() <= 1
    # One tile less would not do.
    assert (len(grid.tops) - 1) * 5 + 3 < length


def test_no_tile_exceeds_and_so_the_whole_does_not() -> None:
  grid = tiles.plan(50, 41, 16, overlap=5)
  signs = np.random.default_rng(0).choice([-1.0, 1.0], (grid.num_tiles, 16, 16, 3))
  assert np.abs(tiles.assemble(signs.astype(np.float32), grid)).max() <= 1 + 1e-6


def test_constant_tiles_of_opposite_sign_blend_smoothly() -> None:
  """The slope across a border is that of the raised cosine; without overlap it is a jump."""
  jumps = {}
  for overlap in (0, 8):
    grid = tiles.plan(60, 60, 24, overlap=overlap)
    rows, columns = np.divmod(np.arange(grid.num_tiles), len(grid.lefts))
    values = np.where((rows + columns) % 2, 1.0, -1.0)[:, None, None, None]
    whole = tiles.assemble(np.broadcast_to(values, (grid.num_tiles, 24, 24, 1)), grid)[..., 0]
    jumps[overlap] = max(np.abs(np.diff(whole, axis=axis)).max() for axis in (0, 1))
    # The tiles' own values are reached between the borders.
    assert whole.max() == 1.0 and whole.min() == -1.0
  assert jumps[0] == 2.0
  # From -1 to 1 over 8 pixels: 2 * pi / 2 / 8 where it is steepest.
  assert 0.3 < jumps[8] <= np.pi / 8 + 1e-6


def test_mirroring_repeats_no_border() -> None:
  row = np.arange(4)[None, :, None]
  grid = tiles.plan(1, 4, 10, overlap=2)
  assert tiles.cut(row, grid)[0, 0, :, 0].tolist() == [3, 2, 1, 0, 1, 2, 3, 2, 1, 0]
  assert grid.lefts == (-3,)
  one = tiles.cut(np.full((1, 1, 3), 7), tiles.plan(1, 1, 4, overlap=1))
  np.testing.assert_array_equal(one, np.full((1, 4, 4, 3), 7))


def test_what_does_not_fit_is_refused() -> None:
  for height, width, tile_size, overlap in (
    (0, 4, 4, 1),
    (4, 4, 0, 0),
    (4, 4, 4, 4),
    (4, 4, 4, -1),
  ):
    with pytest.raises(ValueError, match="must be"):
      tiles.plan(height, width, tile_size, overlap=overlap)
  grid = tiles.plan(10, 10, 4, overlap=1)
  with pytest.raises(ValueError, match="grid is for 10x10"):
    tiles.cut(np.zeros((10, 9, 3)), grid)
  with pytest.raises(ValueError, match="grid has 9 tiles"):
    tiles.assemble(np.zeros((8, 4, 4, 3)), grid)
