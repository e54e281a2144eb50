"""A diffusion model as a tuple of pure functions, whatever network is inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from udp_jax.models.ddpm_unet import UNet2D
from udp_jax.ops.image import from_model_range, to_model_range
from udp_jax.ops.schedules import NoiseSchedule

Params = Any
Cond = Any


class Held(NamedTuple):
  """Parameters in the form that many steps which do not change them want.

  Attributes:
    params: the parameters, arrays of several axes in the dtype of the computation.
    prepared: convolution filters as `ops.conv.prepare` makes them, by layer.
  """

  params: Params
  prepared: Any


class DiffusionModel(NamedTuple):
  """Everything a protection, purifier or threat needs to know about a diffusion model.

  The parameters are an explicit argument of every function, never a constant inside one.

  Attributes:
    init: key -> params.
    encode: (params, images, keys) -> x0. images (B, H, W, 3) in [0, 1]; keys (B,), one a picture,
      for models whose encoder draws (a VAE), or None for the mean of what it draws; pixel models
      ignore them.
    apply: (params, x_t, timesteps, cond, keys=None) -> prediction, the shape of x_t. Keys (B,), one
      a picture, turn dropout on.
    decode: (params, x0, clip=True) -> images in [0, 1]; without `clip` values outside are kept, and
      with them their gradients.
    embed: (params, token_ids) -> cond; None for unconditional pixel models.
    schedule: the noise schedule that the model was or will be trained with.
    shape: of one x0, without the batch axis.
    image_shape: of one picture, (H, W, 3); the same as `shape` for pixel models.
    hold: params -> `Held`, which every function here takes in place of params. For loops that hold
      the parameters still; nothing is differentiated with respect to them then.
    reconstruct: (params, images) -> what the autoencoder gives back for the posterior's mean, not
      clipped, so that gradients reach every pixel; None for models without an autoencoder.
  """

  init: Callable[[jax.Array], Params]
  encode: Callable[[Params, jax.Array, Any], jax.Array]
  apply: Callable[..., jax.Array]
  decode: Callable[..., jax.Array]
  embed: Callable[[Params, jax.Array], Cond] | None
  schedule: NoiseSchedule
  shape: tuple[int, ...]
  image_shape: tuple[int, int, int]
  hold: Callable[[Params], Params] = lambda params: params
  reconstruct: Callable[[Params, jax.Array], jax.Array] | None = None


def pixel_diffusion(unet: UNet2D, schedule: NoiseSchedule) -> DiffusionModel:
  """A diffusion model on pixels: x0 = 2 * images - 1 (Ho et al., arXiv:2006.11239)."""
  size = unet.config.sample_size
  shape = (size, size, unet.config.in_channels)

  def init(key: jax.Array) -> Params:
    return unet.init(key, jnp.zeros((1, *shape)), jnp.zeros((1,), jnp.int32))["params"]

  def encode(params: Params, images: jax.Array, keys: jax.Array | None) -> jax.Array:
    del params, keys  # Pixels are their own code.
    return to_model_range(images)

  def apply(
    params: Params, x_t: jax.Array, timesteps: jax.Array, cond: Cond = None, keys=None
  ) -> jax.Array:
    del cond  # Unconditional.
    seeds = None
    if keys is not None and unet.config.dropout > 0:
      seeds = jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32))(keys)
    variables = params._asdict() if isinstance(params, Held) else {"params": params}
    prediction = unet.apply(variables, x_t, timesteps, seeds=seeds)
    return jnp.asarray(prediction)

  def decode(params: Params, x0: jax.Array, clip: bool = True) -> jax.Array:
    del params
    return from_model_range(x0, clip=clip)

  def hold(params: Params) -> Params:
    if isinstance(params, Held):
      return params
    # Cast once; scales and biases are used wide, or cast for next to nothing.
    cast = jax.tree.map(lambda leaf: leaf.astype(unet.dtype) if leaf.ndim > 1 else leaf, params)
    one = jnp.zeros((1, *shape)), jnp.zeros((1,), jnp.int32)
    # Runs the network to learn each layer's sizes; what it computes is not used, nor compiled.
    _, made = unet.apply({"params": cast}, *one, mutable=["prepared"])
    return Held(cast, made.get("prepared", {}))

  return DiffusionModel(init, encode, apply, decode, None, schedule, shape, shape, hold)
