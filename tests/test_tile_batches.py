"""Tiles as batches: identities, padding, what models take, rounding in pieces."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.configs import common
from udp_jax import parallel, tile_batches
from udp_jax.data import picture_folder
from udp_jax.errors import ConfigError
from udp_jax.models import pipeline
from udp_jax.ops import tiles
from udp_jax.ops.image import quantise_within
from udp_jax.tile_batches import Job, Tiling


def _job(folder: Path, model, **fields) -> Job:
  config = common.study("a test")
  config.global_batch_size = 4
  job = Job(config, "advdm", model, None, Tiling(8, 2), folder, {}, None)
  return job._replace(**fields)


def test_tiles_keep_their_identity_and_padding_weighs_nothing(
  gaussian_model, tmp_path: Path
) -> None:
  pixels = {}
  for name, height, width in (("a", 8, 14), ("b", 5, 5), ("c", 14, 14)):
    generator = np.random.default_rng(height + width)
    pixels[name] = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels[name]).save(tmp_path / f"{name}.png")
  files = picture_folder.list_pictures(tmp_path).files
  grids = [tiles.plan(file.height, file.width, 8, overlap=2) for file in files]
  assert [grid.num_tiles for grid in grids] == [2, 1, 4]
  mesh = parallel.make_mesh()
  job = _job(tmp_path, gaussian_model, cond_of=lambda file: np.full((2,), ord(file.name)))
  made = tile_batches.batches(job, files, grids, mesh)
  assert made.images.shape == (2, 4, 8, 8, 3) and made.mask is None
  cut = np.concatenate([tiles.cut(pixels[f.name], g) for f, g in zip(files, grids)])
  flat = np.asarray(made.images).reshape(8, 8, 8, 3)
  np.testing.assert_array_equal(flat, [*cut, cut[0]])
  assert np.asarray(made.weight).ravel().tolist() == [1] * 7 + [0]
  assert np.asarray(made.cond)[..., 0].ravel().tolist() == [*b"aabcccc", *b"a"]
  ids = np.asarray(made.ids).ravel()
  assert ids.dtype == np.int32 and len(set(ids[:7])) == 7 and (ids >= 0).all()
  last = tile_batches.batches(job, files[2:], grids[2:], mesh)
  assert np.asarray(last.ids).ravel().tolist() == ids[3:7].tolist()


def test_fewer_tiles_than_devices(gaussian_model, tmp_path: Path) -> None:
  Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(tmp_path / "a.png")
  files = picture_folder.list_pictures(tmp_path).files
  grids = [tiles.plan(3, 3, 8, overlap=2)]

  class TwoDevices:
    size = 2

  made = tile_batches.batches(_job(tmp_path, gaussian_model), files, grids, TwoDevices())
  assert made.images.shape[:2] == (1, 2)
  assert np.asarray(made.weight).tolist() == [[1, 0]]


def test_rounding_in_pieces_is_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
  generator = np.random.default_rng(0)
  clean = generator.integers(0, 256, (13, 11, 3), dtype=np.uint8)
  delta = generator.normal(scale=9 / 255, size=clean.shape).astype(np.float32)
  monkeypatch.setattr(tile_batches, "_CHUNK", 100)
  made = tile_batches._quantise(clean, delta, 8.7)
  np.testing.assert_array_equal(made, quantise_within(clean, jnp.asarray(delta), 8.7))
  assert np.abs(made.astype(int) - clean).max() == 8


def test_tile_sizes_that_a_network_takes(tiny_model) -> None:
  assert tile_batches.for_tiles(tiny_model.model, 8) is tiny_model.model
  larger = tile_batches.for_tiles(tiny_model.model, 24)
  assert larger.image_shape == larger.shape == (24, 24, 3)

  def predict(params):
    images, timesteps = jnp.zeros((1, 24, 24, 3)), jnp.zeros((1,), jnp.int32)
    return larger.apply(larger.hold(params), images, timesteps, None)

  assert jax.eval_shape(predict, tiny_model.params).shape == (1, 24, 24, 3)
  for size in (0, 100_000):
    with pytest.raises(ConfigError, match=f"tile_size is {size}: it must be 1 to 10,000 pixels"):
      tile_batches.for_tiles(tiny_model.model, size)


@pytest.mark.slow
def test_latent_models_are_made_for_a_size(tiny_pipeline, make_tiny_pipeline) -> None:
  assert tile_batches.for_tiles(tiny_pipeline.model, 16) is tiny_pipeline.model
  with pytest.raises(ConfigError, match="tile_size is 24: this model is for 16"):
    tile_batches.for_tiles(tiny_pipeline.model, 24)
  # Latents of 9x9, which a U-Net of two levels cannot halve.
  halving = make_tiny_pipeline(
    block_out_channels=(8, 8),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
  )
  odd = pipeline.build_model(halving.configs, halving.scheduler, image_size=18)
  with pytest.raises(ConfigError, match="tile_size is 18: the networks cannot take it"):
    tile_batches.for_tiles(odd, 18)
