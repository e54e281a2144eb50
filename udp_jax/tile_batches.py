"""The tiles of a group of pictures as one data set, and whole pictures from their deltas.

See `udp_jax.pictures` for what this is part of.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from udp_jax import constraints, promises, training
from udp_jax.data import images, masks, picture_folder
from udp_jax.data.picture_folder import PictureFile
from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.ops import tiles, visibility
from udp_jax.ops.image import quantise_within

# Values that are quantised at a time: one compiled program, whatever the pictures' sizes.
_CHUNK = 1 << 18


class Tiling(NamedTuple):
  """How pictures are cut and grouped.

  Attributes:
    tile_size: side of a tile in pixels.
    overlap: pixels over which neighbouring tiles blend.
    files_at_a_time: pictures of a group; 0 for all of them where the method trains a surrogate,
      for a few otherwise.
  """

  tile_size: int
  overlap: int
  files_at_a_time: int = 0


class Job(NamedTuple):
  """What all groups of pictures of a run share.

  Attributes:
    config: of a study.
    row: of `config.protections`, or a method.
    model: the attacked model, for tiles.
    params: its parameters, or None.
    tiling: how pictures are cut and grouped.
    clean: folder of the clean reference.
    mask_files: of `data.masks.find`; empty for none.
    cond_of: a picture's conditioning for the model, without a batch axis; None for none.
  """

  config: Any
  row: str
  model: DiffusionModel
  params: Params | None
  tiling: Tiling
  clean: Path
  mask_files: dict[str, Path]
  cond_of: Callable[[PictureFile], np.ndarray] | None


def check_tile_size(tile_size: int) -> None:
  """Raises ConfigError for a side that no tile has: none, or more than the largest picture."""
  largest = math.isqrt(images.MAX_PIXELS)
  if not 1 <= tile_size <= largest:
    raise ConfigError(
      f"tile_size is {tile_size}: it must be 1 to {largest:,} pixels, the side of the largest "
      "square picture that is read"
    )


def for_tiles(model: DiffusionModel, tile_size: int) -> DiffusionModel:
  """The model for square tiles of another size than its own, if its networks can take them.

  A latent model is made for the size that it is asked for (`load_pipeline`), and only checked here.

  Raises:
    ConfigError: it cannot.
  """
  check_tile_size(tile_size)
  shape = (tile_size, tile_size, model.image_shape[2])
  if model.shape == model.image_shape != shape:
    # What `hold` prepares depends on the size of the maps.
    model = model._replace(shape=shape, image_shape=shape, hold=lambda params: params)
  if model.image_shape != shape:
    raise ConfigError(f"tile_size is {tile_size}: this model is for {model.image_shape[0]}")

  def through(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    params = model.init(key)
    # Any number of tokens will do.
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
  job: Job, group: Sequence[PictureFile], grids: Sequence[tiles.Grid], mesh: Mesh
) -> training.Batch:
  """The tiles of a group, picture after picture, as batches in host memory."""
  count, size = sum(grid.num_tiles for grid in grids), job.tiling.tile_size
  lanes = min(job.config.global_batch_size, count)
  if job.config.global_batch_size % mesh.size == 0:
    lanes = -(-lanes // mesh.size) * mesh.size  # Fewer tiles than devices: some work on repeats.
  padded = -(-count // lanes) * lanes
  pixels = np.empty((padded, size, size, 3), np.uint8)
  ids = np.empty(padded, np.int32)
  allowed = np.ones((padded, size, size, 1), np.uint8)
  limits = []
  grey = np.zeros(padded, np.uint8)
  conds = []
  end = 0
  for file, grid in zip(group, grids):
    start, end = end, end + grid.num_tiles
    picture = picture_folder.read(job.clean / f"{file.name}.png")
    pixels[start:end] = tiles.cut(picture.pixels, grid)
    grey[start:end] = images.is_grey(picture.pixels)
    where = _allowed(job, file, picture)
    if where is not None:
      allowed[start:end] = tiles.cut(where[..., None], grid)
    limit = limit_of(job, picture.pixels)
    if limit is not None:
      limits.append(tiles.cut(limit, grid))
    ids[start:end] = [_tile_id(file.name, number) for number in range(grid.num_tiles)]
    if job.cond_of is not None:
      conds.append(np.repeat(job.cond_of(file)[None], grid.num_tiles, axis=0))
  repeats = np.arange(count, padded) % count
  for leaf in (pixels, ids, allowed, grey):
    leaf[count:] = leaf[repeats]
  cond = np.concatenate(conds)[np.r_[:count, repeats]] if conds else None
  mask = None if allowed.all() else allowed
  limit = np.concatenate(limits)[np.r_[:count, repeats]] if limits else None
  made = training.make_batches(
    pixels, lanes, cond=cond, mask=mask, limit=limit, grey=grey if grey.any() else None
  )
  weight = (np.arange(padded) < count).astype(np.float32)
  return made._replace(ids=ids.reshape(-1, lanes), weight=weight.reshape(-1, lanes))


def _tile_id(name: str, number: int) -> int:
  """A tile's identity for randomness, the same in every group."""
  return zlib.crc32(f"{name}/{number}".encode()) & 0x7FFFFFFF


def _allowed(job: Job, file: PictureFile, picture: images.Picture) -> np.ndarray | None:
  """Where a picture may change, (H, W) bool; None for everywhere."""
  where = None
  if file.name in job.mask_files:
    where = masks.read(job.mask_files[file.name], file)
  if picture.alpha is not None and not picture.alpha.all():
    seen = picture.alpha > 0
    where = seen if where is None else where & seen
  return where


def limit_of(job: Job, clean: np.ndarray) -> np.ndarray | None:
  """The largest change of every pixel of a clean picture (H, W, 3), in levels: uint8 (H, W, 1).

  None where the row's radius is the limit of all.
  """
  strength = promises.spared(job.config)
  if not strength:
    return None
  radius_255 = promises.row_radius_255(job.config, job.row)
  return visibility.spared_limit(clean, radius_255, strength=strength)


def protected(
  job: Job, file: PictureFile, grid: tiles.Grid, deltas: np.ndarray
) -> tuple[images.Picture, images.Picture]:
  """The clean and the protected picture, from the deltas (count, tile_size, tile_size, 3)."""
  clean = picture_folder.read(job.clean / f"{file.name}.png")
  delta = tiles.assemble(deltas, grid)
  constraints.check_finite(delta, file.relative)
  where = _allowed(job, file, clean)
  if where is not None:
    delta[~where] = 0.0
  if images.is_grey(clean.pixels):
    # Equal already, but for the rounding of sums that a compiler orders as it likes.
    delta = np.broadcast_to(delta.mean(axis=-1, keepdims=True), delta.shape)
  limit = limit_of(job, clean.pixels)
  pixels = _quantise(
    clean.pixels, delta, promises.row_radius_255(job.config, job.row) if limit is None else limit
  )
  if where is not None and (pixels != clean.pixels)[~where].any():
    raise RuntimeError(f"{file.relative}: a pixel outside of the mask changed")
  return clean, clean._replace(pixels=pixels)


_within = jax.jit(quantise_within)


def _quantise(clean: np.ndarray, delta: np.ndarray, bound: float | np.ndarray) -> np.ndarray:
  """`quantise_within`, in pieces of one size; the bound is one number, or (H, W, 1)."""
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
