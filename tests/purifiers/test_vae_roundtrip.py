"""The round trip through an autoencoder."""

from __future__ import annotations

import jax
import numpy as np

from tests.purifiers.photographs import apply_with, photograph
from udp_jax import purifiers
from udp_jax.models.sd_vae import AutoencoderKL
from udp_jax.ops.image import to_float


def test_vae_roundtrip_is_the_autoencoder(tiny_pipeline):
  """The posterior mean, decoded; other sizes are mirrored up to whole latents and cropped."""
  vae = AutoencoderKL(tiny_pipeline.configs["vae"])
  variables = {"params": tiny_pipeline.params["vae"]}
  images = to_float(photograph(2, 13, 11))
  got = apply_with(purifiers.build("vae_roundtrip", tiny_pipeline.model, {}), tiny_pipeline, images)
  whole = np.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)), "symmetric")

  @jax.jit
  def through(x):
    mean, _ = vae.apply(variables, x, method="encode")
    return vae.apply(variables, mean, method="decode")

  expected = np.clip(0.5 * through(2 * whole - 1) + 0.5, 0, 1)
  np.testing.assert_allclose(got, expected[:, :13, :11], atol=1e-5)
