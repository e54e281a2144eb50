"""Tiny diffusion models for examples, notebooks and tests, which run almost instantly.

The network is the optimal denoiser of normally distributed pictures, with their mean and spread as
parameters: it learns in a hundred steps, and the correct result can be computed by hand.

>>> model = on_pixels()
>>> params = model.init(jax.random.key(0))
>>> model.apply(params, jnp.zeros((2, 8, 8, 3)), jnp.array([0, 49])).shape
(2, 8, 8, 3)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from udp_jax.models.base import Cond, DiffusionModel, Params
from udp_jax.ops import schedules
from udp_jax.ops.image import from_model_range
from udp_jax.ops.keys import normal_each


def on_pixels() -> DiffusionModel:
  """Returns a model of pictures (8, 8, 3)."""

  def encode(params: Params, images: jax.Array, keys: jax.Array | None) -> jax.Array:
    del params, keys  # Pixels need no encoder.
    return 2.0 * images - 1.0

  def decode(params: Params, x0: jax.Array, clip: bool = True) -> jax.Array:
    del params
    return from_model_range(x0, clip=clip)

  return _gaussian(encode, decode, (8, 8, 3))


def on_latents() -> DiffusionModel:
  """Returns a model of pictures (8, 8, 3) with latents (4, 4, 3).

  Latents are drawn around means of 2x2 pixels with standard deviation 0.05; decoding repeats them.
  The autoencoder has no parameters.
  """

  def posterior(params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    del params
    count, height, width, _ = images.shape
    mean = 2.0 * images.reshape(count, height // 2, 2, width // 2, 2, 3).mean((2, 4)) - 1.0
    return mean, jnp.full(mean.shape, 2.0 * math.log(0.05))

  def encode(params: Params, images: jax.Array, keys: jax.Array | None) -> jax.Array:
    mean, _ = posterior(params, images)
    return mean if keys is None else mean + 0.05 * normal_each(keys, mean.shape[1:])

  def decode(params: Params, x0: jax.Array, clip: bool = True) -> jax.Array:
    del params
    return from_model_range(jnp.repeat(jnp.repeat(x0, 2, axis=1), 2, axis=2), clip=clip)

  def reconstruct(params: Params, images: jax.Array) -> jax.Array:
    return decode(params, encode(params, images, None), clip=False)

  return _gaussian(encode, decode, (4, 4, 3))._replace(
    image_shape=(8, 8, 3), reconstruct=reconstruct, posterior=posterior
  )


def _gaussian(encode: Callable, decode: Callable, shape: tuple[int, int, int]) -> DiffusionModel:
  """noise_pred = sigma_t (x_t - signal_t mean) / (signal_t^2 spread^2 + sigma_t^2)."""
  schedule = schedules.linear(50, beta_end=0.2)

  def init(key: jax.Array) -> Params:
    return {"mean": 0.1 * jax.random.normal(key, shape), "log_spread": jnp.zeros((3,))}

  def apply(
    params: Params, x_t: jax.Array, timesteps: jax.Array, cond: Cond = None, keys=None
  ) -> jax.Array:
    del cond, keys
    spread, mean = params["log_spread"][None, None, None], params["mean"][None]
    abar = schedules.gather(schedule.alphas_cumprod, timesteps, x_t.ndim)
    variance = abar * jnp.exp(2.0 * spread) + 1.0 - abar
    return jnp.sqrt(1.0 - abar) * (x_t - jnp.sqrt(abar) * mean) / variance

  return DiffusionModel(init, encode, apply, decode, None, schedule, shape, shape)
