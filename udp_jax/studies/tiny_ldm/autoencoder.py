"""The first stage of latent diffusion: an autoencoder with a small KL penalty to a normal prior.

Rombach et al. 2022 (arXiv:2112.10752, section 3.1 and appendix G) add a perceptual and an
adversarial loss to the reconstruction loss. Neither suits a small run from scratch: the first needs
a large trained network, the second a long training. We use L1 of the pixels, and L1 of the
differences between neighbours, which penalises blur.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.models.base import Cond, Params
from udp_jax.models.sd_vae import AutoencoderKL
from udp_jax.objectives.base import Objective
from udp_jax.ops.image import from_model_range, to_float, to_model_range
from udp_jax.ops.keys import normal_each
from udp_jax.ops.similarity import psnr


def reconstruction(vae: AutoencoderKL, *, gradient_weight: float, kl_weight: float) -> Objective:
  """L1 + gradient_weight * L1 of neighbour differences + kl_weight * KL, each averaged.

  Args:
    vae: the autoencoder.
    gradient_weight: weight of the differences between neighbours, along both axes.
    kl_weight: weight of KL(q(latents | image) || N(0, 1)), a mean over the latents' elements.

  Returns:
    An objective on images (B, H, W, 3) in [0, 1]; aux holds `l1` and `kl`, (B,).
  """

  network: Any = vae.apply  # Flax does not type the return values of a module's methods.

  def objective(params: Params, images: jax.Array, cond: Cond, keys: jax.Array):
    del cond
    pixels = to_model_range(images)
    mean, logvar = network({"params": params}, pixels, method="encode")
    latents = mean + jnp.exp(0.5 * logvar) * normal_each(keys, mean.shape[1:])
    error = network({"params": params}, latents, method="decode") - pixels

    def absolute(values: jax.Array) -> jax.Array:
      return jnp.mean(jnp.abs(values), axis=(1, 2, 3))

    l1 = absolute(error)
    edges = absolute(error[:, 1:] - error[:, :-1]) + absolute(error[:, :, 1:] - error[:, :, :-1])
    divergence = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)
    kl = jnp.mean(divergence, axis=(1, 2, 3))
    return l1 + gradient_weight * edges + kl_weight * kl, {"l1": l1, "kl": kl}

  return objective


def encode_all(
  vae: AutoencoderKL, params: Params, images: np.ndarray, batch_size: int
) -> np.ndarray:
  """Returns moments of pictures: uint8 (N, H, W, 3) -> float32 (N, h, w, 2 * latent_channels)."""

  network: Any = vae.apply

  @jax.jit
  def encode(levels: jax.Array) -> jax.Array:
    pixels = to_model_range(to_float(levels))
    return jnp.concatenate(network({"params": params}, pixels, method="encode"), axis=-1)

  return _by_batches(encode, images, batch_size)


def reconstruct_all(
  vae: AutoencoderKL, params: Params, images: np.ndarray, batch_size: int
) -> np.ndarray:
  """Decodes the mean of the latents: uint8 (N, H, W, 3) -> float32 in [0, 1]."""

  network: Any = vae.apply

  @jax.jit
  def reconstruct(levels: jax.Array) -> jax.Array:
    made = network({"params": params}, to_model_range(to_float(levels)))
    return from_model_range(made, clip=True)

  return _by_batches(reconstruct, images, batch_size)


def held_out_psnr(images: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
  """PSNR in dB of each picture, (N,): uint8 originals against float reconstructions in [0, 1]."""
  return np.asarray(psnr(to_float(images), jnp.asarray(reconstructions)))


def scaling_factor(moments: np.ndarray) -> float:
  """Returns 1 / standard deviation of the latents with these moments, (N, h, w, 2 * C)."""
  mean, logvar = np.split(moments.astype(np.float64), 2, axis=-1)
  return float(1.0 / np.sqrt(mean.var() + np.exp(logvar).mean()))


def _by_batches(function: Callable, images: np.ndarray, batch_size: int) -> np.ndarray:
  """Applies a compiled function to rows in batches of one size."""
  size = min(batch_size, len(images))
  rows = np.arange(-(-len(images) // size) * size) % len(images)
  made = [np.asarray(function(images[part])) for part in rows.reshape(-1, size)]
  return np.concatenate(made)[: len(images)]
