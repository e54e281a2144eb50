"""Tiles as batches: identities, padding, what models take, rounding in pieces."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from udp_jax.data import picture_files
from udp_jax.errors import ConfigError
from udp_jax.models import pipeline
from udp_jax.ops import tiles
from udp_jax.ops.image import quantise_within
from udp_jax.runtime import mesh as mesh_lib
from udp_jax.stages import tiles as tiles_lib
from udp_jax.stages.records import Row, Run
from udp_jax.stages.tiles import Pictures, Tiling


def _pictures(workdir: Path, found, **fields) -> Pictures:
  """Pictures whose clean reference is in workdir/clean."""
  return Pictures(found, Tiling(8, 2), workdir, **fields)


ROW = Row("advdm", "advdm", {}, 1, 16.0)


def _run(mesh) -> Run:
  return Run(mesh, Path(), jax.random.key(0), "protect", global_batch_size=4)


def test_tiles_keep_their_identity_and_padding_weighs_nothing(tmp_path: Path) -> None:
  (tmp_path / "clean").mkdir()
  pixels = {}
  for name, height, width in (("a", 8, 14), ("b", 5, 5), ("c", 14, 14)):
    generator = np.random.default_rng(height + width)
    pixels[name] = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels[name]).save(tmp_path / "clean" / f"{name}.png")
  found = picture_files.list_pictures(tmp_path / "clean")
  files = found.files
  grids = [tiles.plan(file.height, file.width, 8, overlap=2) for file in files]
  assert [grid.num_tiles for grid in grids] == [2, 1, 4]
  mesh = mesh_lib.make_mesh()
  job = _pictures(tmp_path, found, cond_of=lambda file: np.full((2,), ord(file.name)))
  made = tiles_lib.batches(job, ROW, files, grids, _run(mesh))
  assert made.images.shape == (2, 4, 8, 8, 3) and made.mask is None
  cut = np.concatenate([tiles.cut(pixels[f.name], g) for f, g in zip(files, grids)])
  flat = np.asarray(made.images).reshape(8, 8, 8, 3)
  np.testing.assert_array_equal(flat, [*cut, cut[0]])
  assert np.asarray(made.weight).ravel().tolist() == [1] * 7 + [0]
  assert np.asarray(made.cond)[..., 0].ravel().tolist() == [*b"aabcccc", *b"a"]
  ids = np.asarray(made.ids).ravel()
  assert ids.dtype == np.int32 and len(set(ids[:7])) == 7 and (ids >= 0).all()
  last = tiles_lib.batches(job, ROW, files[2:], grids[2:], _run(mesh))
  assert np.asarray(last.ids).ravel().tolist() == ids[3:7].tolist()


def test_fewer_tiles_than_devices(tmp_path: Path) -> None:
  (tmp_path / "clean").mkdir()
  Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(tmp_path / "clean" / "a.png")
  found = picture_files.list_pictures(tmp_path / "clean")
  files = found.files
  grids = [tiles.plan(3, 3, 8, overlap=2)]

  class TwoDevices:
    size = 2

  made = tiles_lib.batches(_pictures(tmp_path, found), ROW, files, grids, _run(TwoDevices()))
  assert made.images.shape[:2] == (1, 2)
  assert np.asarray(made.weight).tolist() == [[1, 0]]


def test_rounding_in_pieces_is_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
  generator = np.random.default_rng(0)
  clean = generator.integers(0, 256, (13, 11, 3), dtype=np.uint8)
  delta = generator.normal(scale=9 / 255, size=clean.shape).astype(np.float32)
  monkeypatch.setattr(tiles_lib, "_CHUNK", 100)
  made = tiles_lib._quantise(clean, delta, 8.7)
  np.testing.assert_array_equal(made, quantise_within(clean, jnp.asarray(delta), 8.7))
  assert np.abs(made.astype(int) - clean).max() == 8


def test_tile_sizes_that_a_network_takes(tiny_model) -> None:
  assert tiles_lib.for_tiles(tiny_model.model, 8) is tiny_model.model
  larger = tiles_lib.for_tiles(tiny_model.model, 24)
  assert larger.image_shape == larger.shape == (24, 24, 3)

  def predict(params):
    images, timesteps = jnp.zeros((1, 24, 24, 3)), jnp.zeros((1,), jnp.int32)
    return larger.apply(larger.hold(params), images, timesteps, None)

  assert jax.eval_shape(predict, tiny_model.params).shape == (1, 24, 24, 3)
  for size in (0, 100_000):
    with pytest.raises(ConfigError, match=f"tile_size is {size}: it must be 1 to 10,000 pixels"):
      tiles_lib.for_tiles(tiny_model.model, size)


@pytest.mark.slow
def test_latent_models_are_made_for_a_size(tiny_pipeline, make_tiny_pipeline) -> None:
  assert tiles_lib.for_tiles(tiny_pipeline.model, 16) is tiny_pipeline.model
  with pytest.raises(ConfigError, match="tile_size is 24: this model is for 16"):
    tiles_lib.for_tiles(tiny_pipeline.model, 24)
  # Latents of 9x9, which a U-Net of two levels cannot halve.
  halving = make_tiny_pipeline(
    block_out_channels=(8, 8),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
  )
  odd = pipeline.build_model(halving.configs, halving.scheduler, image_size=18)
  with pytest.raises(ConfigError, match="tile_size is 18: the networks cannot take it"):
    tiles_lib.for_tiles(odd, 18)
