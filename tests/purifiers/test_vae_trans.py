"""The round trip through another model's autoencoder."""

from __future__ import annotations

import numpy as np
import pytest

from tests.models.restorers import taef_tensors
from tests.purifiers.photographs import apply, apply_with, photograph
from udp_jax import purifiers
from udp_jax.errors import ConfigError
from udp_jax.models import pipeline, tiny_autoencoder
from udp_jax.ops.image import to_float


def test_a_tiny_autoencoder(tmp_path):
  for side, tensors in zip(("encoder", "decoder"), taef_tensors()):
    np.savez(tmp_path / f"taef2_{side}.npz", **tensors)
  images = to_float(photograph(2, 13, 11))
  purifier = purifiers.build("vae_trans", None, {"autoencoder": str(tmp_path)})
  params = tiny_autoencoder.load(*tiny_autoencoder.files_in(tmp_path))
  whole = np.pad(images, ((0, 0), (0, 3), (0, 1), (0, 0)), "symmetric")
  expected = np.clip(tiny_autoencoder.reconstruct(params, whole), 0, 1)
  np.testing.assert_allclose(apply(purifier, images), expected[:, :13, :11], atol=1e-5)


def test_the_vae_of_a_model_is_its_round_trip(tmp_path, tiny_pipeline):
  pipeline.save_pipeline_folder(tmp_path, tiny_pipeline)
  images = to_float(photograph(2, 13, 11))
  options = {"autoencoder": str(tmp_path), "num_passes": 2}
  own = purifiers.build("vae_roundtrip", tiny_pipeline.model, {"num_passes": 2})
  expected = apply_with(own, tiny_pipeline, images)
  np.testing.assert_allclose(
    apply(purifiers.build("vae_trans", None, options), images), expected, atol=1e-5
  )


def test_it_has_to_be_named():
  with pytest.raises(ConfigError, match="purifier vae_trans needs .*autoencoder"):
    purifiers.build("vae_trans", None, {})
