"""A model that every purifier can work with, and a distance without weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from udp_jax.models.perceptual import PerceptualDistance


@pytest.fixture(scope="session")
def latent_model(gaussian_model):
  """`gaussian_model` with an autoencoder: means of 2x2 pixels, their contrast by a learned gain."""

  def init(key):
    return gaussian_model.init(key) | {"gain": jnp.asarray([0.9, 0.8, 0.95])}

  def reconstruct(params, images):
    b, h, w, c = images.shape
    means = images.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4), keepdims=True)
    means = 0.5 + params["gain"] * (means.reshape(b, h // 2, 1, w // 2, 1, c) - 0.5)
    return jnp.broadcast_to(means, (b, h // 2, 2, w // 2, 2, c)).reshape(images.shape)

  small = (*(n // 2 for n in gaussian_model.shape[:2]), 3)
  return gaussian_model._replace(init=init, shape=small, reconstruct=reconstruct)


@pytest.fixture(scope="session")
def plain_distance() -> PerceptualDistance:
  """Mean absolute difference under weights a channel."""

  def apply(params, x, y):
    return jnp.mean(params * jnp.abs(x - y), axis=(1, 2, 3))

  return PerceptualDistance("plain", "plain", jnp.asarray([1.0, 2.0, 0.5]), apply, 4, "none")


@pytest.fixture(scope="session")
def build(gaussian_model, latent_model, plain_distance):
  """Makes a purifier that runs in an instant: `build(name, **options)`."""
  from tests.models import restorers
  from udp_jax import purifiers
  from udp_jax.models import ffdnet, ncnn_file, realesrgan
  from udp_jax.models.autoencoders import Autoencoder

  # Random networks that leave pictures to be recognised.
  *layers, (kernel, bias) = ffdnet.params_from_tensors(restorers.ffdnet_tensors())
  denoiser = {"weights": (*layers, (0.1 * kernel, 0.1 * bias))}
  files = restorers.rrdbnet_files(width=3, growth=2, blocks=1)
  network = realesrgan.params_from_layers(ncnn_file.parse(*files))
  features, (kernel, bias) = network.last
  grey = realesrgan.Conv(0.2 * kernel, 0.2 * bias + 0.5)
  upscaler = {"weights": network._replace(last=(features, grey))}
  model = latent_model
  another = Autoencoder(model.init(jax.random.key(6)), model.reconstruct, 2)
  few = {
    "ffdnet": denoiser,
    "blind_denoiser": denoiser,
    "upscale": upscaler,
    "noisy_upscaling": upscaler,
    "vae_trans": {"autoencoder": another},
    "freqpure": {"timestep": 5, "amplitude_cutoff": 1.0, "phase_cutoff": 1.0},
    "chain": {"methods": [{"name": "gaussian_noise"}, {"name": "jpeg", "quality": 80}]},
    "diffpure": {"timestep": 5},
    "gridpure": {"timestep": 3, "num_iterations": 2},
    "impress": {"num_steps": 6, "perceptual": plain_distance, "perceptual_budget": 0.02},
    "adverse_cleaner": {"bilateral_passes": 4, "guided_passes": 2},
  }

  def make(name: str, **options):
    model = gaussian_model if name in purifiers.PRIORS else latent_model
    purifier = purifiers.build(name, model, few.get(name, {}) | options)
    return purifier, purifier.init(jax.random.key(5))

  return make
