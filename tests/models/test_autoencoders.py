"""Autoencoders of every kind, by their path."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.models.restorers import taef_tensors
from udp_jax.errors import ConfigError, MissingDataError
from udp_jax.models import autoencoders, pipeline, tiny_autoencoder


def test_a_tiny_one(tmp_path):
  for side, tensors in zip(("encoder", "decoder"), taef_tensors()):
    np.savez(tmp_path / f"{side}.npz", **tensors)
  loaded = autoencoders.load(tmp_path)
  assert loaded.downscale == 4
  images = np.random.default_rng(0).random((1, 8, 8, 3)).astype(np.float32)
  expected = tiny_autoencoder.reconstruct(loaded.params, images)
  np.testing.assert_array_equal(loaded.reconstruct(loaded.params, images), expected)


def test_the_vae_of_a_model(tmp_path, tiny_pipeline):
  """Of a whole folder and of the part alone: what the model itself reconstructs."""
  pipeline.save_pipeline_folder(tmp_path / "model", tiny_pipeline)
  size = tiny_pipeline.model.image_shape
  images = np.random.default_rng(0).random((2, *size)).astype(np.float32)
  expected = jax.jit(tiny_pipeline.model.reconstruct)(tiny_pipeline.params, images)
  for path in (tmp_path / "model", tmp_path / "model" / "vae"):
    loaded = autoencoders.load(path)
    assert loaded.downscale == size[0] // tiny_pipeline.model.shape[0]
    got = jax.jit(loaded.reconstruct)(loaded.params, images)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_packaged_model_and_what_is_none(tmp_path):
  assert autoencoders.load("tiny_ldm").downscale == 4
  with pytest.raises(MissingDataError, match="no folder"):
    autoencoders.load(tmp_path / "nothing")
  (tmp_path / "encoder.npz").touch()
  with pytest.raises(ConfigError, match="one of a decoder"):
    autoencoders.load(tmp_path)
