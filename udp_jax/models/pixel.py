"""A diffusion model on pixels."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from udp_jax.models.base import Cond, DiffusionModel, Held, Params
from udp_jax.models.ddpm_unet import UNet2D
from udp_jax.ops.image import from_model_range, to_model_range
from udp_jax.ops.schedules import NoiseSchedule


def pixel_diffusion(unet: UNet2D, schedule: NoiseSchedule) -> DiffusionModel:
  """Builds a diffusion model on pixels: x0 = 2 * images - 1 (Ho et al., arXiv:2006.11239).

  A U-Net with twice as many channels of output as of input also predicts the variance of reverse
  steps (Nichol & Dhariwal 2021, arXiv:2102.09672).
  """
  size, channels = unet.config.sample_size, unet.config.in_channels
  shape = (size, size, channels)

  def init(key: jax.Array) -> Params:
    return unet.init(key, jnp.zeros((1, *shape)), jnp.zeros((1,), jnp.int32))["params"]

  def encode(params: Params, images: jax.Array, keys: jax.Array | None) -> jax.Array:
    del params, keys  # Pixels need no encoder.
    return to_model_range(images)

  def output(params: Params, x_t: jax.Array, timesteps: jax.Array, keys=None) -> jax.Array:
    seeds = None
    if keys is not None and unet.config.dropout > 0:
      seeds = jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32))(keys)
    variables = params._asdict() if isinstance(params, Held) else {"params": params}
    return jnp.asarray(unet.apply(variables, x_t, timesteps, seeds=seeds))

  def apply(
    params: Params, x_t: jax.Array, timesteps: jax.Array, cond: Cond = None, keys=None
  ) -> jax.Array:
    del cond  # The model is unconditional.
    return output(params, x_t, timesteps, keys)[..., :channels]

  def apply_learned(
    params: Params, x_t: jax.Array, timesteps: jax.Array, cond: Cond = None
  ) -> tuple[jax.Array, jax.Array]:
    del cond
    prediction, share = jnp.split(output(params, x_t, timesteps), 2, axis=-1)
    return prediction, 0.5 * (share + 1.0)

  def decode(params: Params, x0: jax.Array, clip: bool = True) -> jax.Array:
    del params
    return from_model_range(x0, clip=clip)

  def hold(params: Params) -> Params:
    if isinstance(params, Held):
      return params
    # Cast only matrices and filters; scales and biases are used wide, or cast at little cost.
    cast = jax.tree.map(lambda leaf: leaf.astype(unet.dtype) if leaf.ndim > 1 else leaf, params)
    one = jnp.zeros((1, *shape)), jnp.zeros((1,), jnp.int32)
    # Run the network only to learn each layer's sizes; its output is not used or compiled.
    _, made = unet.apply({"params": cast}, *one, mutable=["prepared"])
    return Held(cast, made.get("prepared", {}))

  model = DiffusionModel(init, encode, apply, decode, None, schedule, shape, shape, hold)
  learns = unet.config.out_channels == 2 * channels
  return model._replace(apply_learned=apply_learned) if learns else model
