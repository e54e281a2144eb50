"""Codes of a VAE whose codes can be worked out: means of 2x2 pixels."""

from __future__ import annotations

import numpy as np
import pytest

from udp_jax.metrics import latents
from udp_jax.runtime import mesh


@pytest.fixture
def codec(latent_model) -> latents.Latents:
  """The mean of what `latent_model` draws, three pictures at a time."""

  def encode(params, images, keys):
    del keys
    return latent_model.encode(params, images, None)

  model = latent_model._replace(encode=encode)
  return latents.Latents(model, per_device_batch_size=3, mesh=mesh.make_mesh())


def test_codes_and_errors_of_all_pictures(codec: latents.Latents, pictures: np.ndarray) -> None:
  images = pictures[:7]
  scaled = images.astype(np.float64) / 255
  means = scaled.reshape(7, 4, 2, 4, 2, 3).mean((2, 4))
  codes = codec.codes({}, images)
  np.testing.assert_allclose(codes, 2 * means - 1, atol=1e-6)
  found = codec.reconstruction_error({}, images, codes)
  back = means.repeat(2, axis=1).repeat(2, axis=2)
  np.testing.assert_allclose(found, ((back - scaled) ** 2).mean((1, 2, 3)), rtol=1e-4)
  assert found.dtype == np.float64 and found.min() > 1e-4


def test_distance_is_in_units_of_the_clean_spread() -> None:
  generator = np.random.default_rng(0)
  clean = 3.0 * generator.normal(size=(5, 4, 4, 2)) + 7.0
  moved = clean + np.arange(5.0).reshape(5, 1, 1, 1)
  found = latents.latent_distance(moved, clean)
  np.testing.assert_allclose(found, np.arange(5.0) / clean.std(), rtol=1e-12)
  # Another scale of the codes is the same distance.
  np.testing.assert_allclose(latents.latent_distance(10 * moved, 10 * clean), found, rtol=1e-12)
  unrelated = latents.latent_distance(3.0 * generator.normal(size=clean.shape) + 7.0, clean)
  assert unrelated.mean() == pytest.approx(2**0.5, rel=0.2)
