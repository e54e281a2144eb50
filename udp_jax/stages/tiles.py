"""Cuts a group of pictures into tiles as one data set, and blends their deltas into whole pictures.

This is part of `udp_jax.stages.protect_pictures`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.data import batches as batches_lib
from udp_jax.data import images, masks
from udp_jax.data.picture_files import PictureFile, PictureFolder
from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel
from udp_jax.ops import tiles, visibility
from udp_jax.ops.image import quantise_within
from udp_jax.protections import constraints
from udp_jax.stages.records import Row, Run

# Values quantised at a time, so that one compiled program serves pictures of all sizes.
_CHUNK = 1 << 18


class Tiling(NamedTuple):
  """How pictures are cut and grouped.

  Attributes:
    tile_size: side of a tile in pixels.
    overlap: pixels over which neighbouring tiles blend.
    files_at_a_time: pictures in a group; 0 takes all if the method trains a surrogate, else a few.
  """

  tile_size: int
  overlap: int
  files_at_a_time: int = 0


class Pictures(NamedTuple):
  """Pictures of any size that are protected by tiles.

  Attributes:
    found: the pictures.
    tiling: how they are cut and grouped.
    workdir: working folder; the 8-bit reference is in workdir/clean.
    mask_files: masks by picture name, from `data.masks.find`; if empty, every pixel may change.
    texts: captions by relative path; empty for models without text.
    cond_of: picture -> its conditioning, without a batch axis; None for models without text.
    imitated: folder of the same pictures protected by another row, for controls that imitate it.
  """

  found: PictureFolder
  tiling: Tiling
  workdir: Path
  mask_files: dict[str, Path] = {}
  texts: Mapping[str, str] = {}
  cond_of: Callable[[PictureFile], np.ndarray] | None = None
  imitated: Path | None = None

  @property
  def clean(self) -> Path:
    """Folder of the 8-bit reference at full resolution."""
    return self.workdir / "clean"

  @property
  def names(self) -> list[str]:
    """Names of the pictures, in order."""
    return [file.name for file in self.found.files]


def check_tile_size(tile_size: int) -> None:
  """Raises ConfigError for a side below the smallest tile or above the largest picture."""
  largest = math.isqrt(images.MAX_PIXELS)
  if not 1 <= tile_size <= largest:
    raise ConfigError(
      f"tile_size is {tile_size}: it must be 1 to {largest:,} pixels, the side of the largest "
      "square picture that is read"
    )


def for_tiles(model: DiffusionModel, tile_size: int) -> DiffusionModel:
  """Returns the model for square tiles of another size, if its networks can take them.

  A latent model is loaded for its size (`load_pipeline`), so it is only checked here.

  Raises:
    ConfigError: the model cannot work at this size.
  """
  check_tile_size(tile_size)
  shape = (tile_size, tile_size, model.image_shape[2])
  if model.shape == model.image_shape != shape:
    # What `hold` prepares depends on the size of the feature maps.
    model = model._replace(shape=shape, image_shape=shape, hold=lambda params: params)
  if model.image_shape != shape:
    raise ConfigError(f"tile_size is {tile_size}: this model is for {model.image_shape[0]}")

  def through(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    params = model.init(key)
    # The number of tokens does not matter here.
    cond = None if model.embed is None else model.embed(params, jnp.zeros((1, 4), jnp.int32))
    x0 = model.encode(params, jnp.zeros((1, *shape)), key[None])
    return x0, model.apply(params, x0, jnp.zeros((1,), jnp.int32), cond)

  try:
    x0, made = jax.eval_shape(through, jax.random.key(0))
  except (TypeError, ValueError) as error:
    raise ConfigError(
      f"tile_size is {tile_size}: the networks cannot take it; try a multiple of 64"
    ) from error
  if made.shape != x0.shape:
    raise ConfigError(f"tile_size is {tile_size}: the network makes {made.shape} of {x0.shape}")
  return model


def batches(
  pictures: Pictures,
  row: Row,
  group: Sequence[PictureFile],
  grids: Sequence[tiles.Grid],
  run: Run,
) -> batches_lib.Batch:
  """Returns the tiles of a group, picture after picture, as batches in host memory.

  Args:
    pictures: all pictures of the run.
    row: its budget limits the change of each pixel.
    group: the pictures of the group.
    grids: the tile grid of each picture.
    run: its batch size and mesh are used.
  """
  count, size = sum(grid.num_tiles for grid in grids), pictures.tiling.tile_size
  lanes, devices = min(run.global_batch_size, count), run.mesh.size
  if run.global_batch_size % devices == 0:
    lanes = -(-lanes // devices) * devices  # Fewer tiles than devices: some work on repeats.
  padded = -(-count // lanes) * lanes
  pixels = np.empty((padded, size, size, 3), np.uint8)
  reference = None if pictures.imitated is None else np.empty_like(pixels)
  ids = np.empty(padded, np.int32)
  allowed = np.ones((padded, size, size, 1), np.uint8)
  limits = []
  grey = np.zeros(padded, np.uint8)
  conds = []
  end = 0
  for file, grid in zip(group, grids):
    start, end = end, end + grid.num_tiles
    picture = images.read_large(pictures.clean / f"{file.name}.png")
    pixels[start:end] = tiles.cut(picture.pixels, grid)
    if pictures.imitated is not None and reference is not None:
      theirs = images.read_large(pictures.imitated / f"{file.name}.png")
      reference[start:end] = tiles.cut(theirs.pixels, grid)
    grey[start:end] = images.is_grey(picture.pixels)
    where = _allowed(pictures, file, picture)
    if where is not None:
      allowed[start:end] = tiles.cut(where[..., None], grid)
    limit = limit_of(row, picture.pixels)
    if limit is not None:
      limits.append(tiles.cut(limit, grid))
    ids[start:end] = [_tile_id(file.name, number) for number in range(grid.num_tiles)]
    if pictures.cond_of is not None:
      conds.append(np.repeat(pictures.cond_of(file)[None], grid.num_tiles, axis=0))
  repeats = np.arange(count, padded) % count
  for leaf in (pixels, reference, ids, allowed, grey):
    if leaf is not None:
      leaf[count:] = leaf[repeats]
  cond = np.concatenate(conds)[np.r_[:count, repeats]] if conds else None
  mask = None if allowed.all() else allowed
  limit = np.concatenate(limits)[np.r_[:count, repeats]] if limits else None
  made = batches_lib.make_batches(
    pixels,
    lanes,
    reference=reference,
    cond=cond,
    mask=mask,
    limit=limit,
    grey=grey if grey.any() else None,
  )
  weight = (np.arange(padded) < count).astype(np.float32)
  return made._replace(ids=ids.reshape(-1, lanes), weight=weight.reshape(-1, lanes))


def _tile_id(name: str, number: int) -> int:
  """A tile's id for random draws, the same in every group."""
  return zlib.crc32(f"{name}/{number}".encode()) & 0x7FFFFFFF


def _allowed(pictures: Pictures, file: PictureFile, picture: images.Picture) -> np.ndarray | None:
  """Mask of the pixels that may change, (H, W) bool; None if all may."""
  where = None
  if file.name in pictures.mask_files:
    where = masks.read(pictures.mask_files[file.name], file)
  if picture.alpha is not None and not picture.alpha.all():
    seen = picture.alpha > 0
    where = seen if where is None else where & seen
  return where


def limit_of(row: Row, clean: np.ndarray) -> np.ndarray | None:
  """Returns each pixel's largest change in levels, uint8 (H, W, 1), for a clean (H, W, 3) picture.

  None if the row's radius limits all pixels alike.
  """
  if not row.spare_flat:
    return None
  return visibility.spared_limit(clean, row.radius_255, strength=row.spare_flat)


def protected(
  pictures: Pictures, row: Row, file: PictureFile, grid: tiles.Grid, deltas: np.ndarray
) -> tuple[images.Picture, images.Picture]:
  """Returns the clean and the protected picture; `deltas` is (count, tile_size, tile_size, 3)."""
  clean = images.read_large(pictures.clean / f"{file.name}.png")
  delta = tiles.assemble(deltas, grid)
  constraints.check_finite(delta, file.relative)
  where = _allowed(pictures, file, clean)
  if where is not None:
    delta[~where] = 0.0
  if images.is_grey(clean.pixels):
    # The channels differ only by rounding: a compiler may order sums differently for each.
    delta = np.broadcast_to(delta.mean(axis=-1, keepdims=True), delta.shape)
  limit = limit_of(row, clean.pixels)
  pixels = _quantise(clean.pixels, delta, row.radius_255 if limit is None else limit)
  if where is not None and (pixels != clean.pixels)[~where].any():
    raise RuntimeError(f"{file.relative}: a pixel outside of the mask changed")
  return clean, clean._replace(pixels=pixels)


_within = jax.jit(quantise_within)


def _quantise(clean: np.ndarray, delta: np.ndarray, bound: float | np.ndarray) -> np.ndarray:
  """`quantise_within` in chunks of one size; `bound` is one number, or (H, W, 1)."""
  levels, change = clean.reshape(-1), delta.reshape(-1)
  if isinstance(bound, np.ndarray):
    bound = np.broadcast_to(bound, clean.shape).reshape(-1)
  result = np.empty_like(levels)
  for start in range(0, levels.size, _CHUNK):
    part = slice(start, min(start + _CHUNK, levels.size))
    missing = (0, _CHUNK - (part.stop - start))
    within = np.pad(bound[part], missing) if isinstance(bound, np.ndarray) else bound
    made = _within(
      np.pad(levels[part], missing), jnp.asarray(np.pad(change[part], missing)), within
    )
    result[part] = np.asarray(made)[: part.stop - start]
  return result.reshape(clean.shape)
