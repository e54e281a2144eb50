"""A diffusion model as a tuple of pure functions, independent of the network inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from udp_jax.errors import ConfigError
from udp_jax.ops.schedules import NoiseSchedule

Params = Any
Cond = Any


class Held(NamedTuple):
  """Parameters prepared for loops of many steps that do not change them.

  Attributes:
    params: the parameters; arrays of several axes have the dtype of the computation.
    prepared: convolution filters from `ops.conv.hold`, by layer.
  """

  params: Params
  prepared: Any


class DiffusionModel(NamedTuple):
  """The functions and sizes of a diffusion model that protections, purifiers and threats use.

  Every function takes the parameters as an argument; none holds them as a constant.

  Attributes:
    init: key -> params.
    encode: (params, images, keys) -> x0. images (B, H, W, 3) in [0, 1]; keys (B,), one per picture,
      for models whose encoder draws (a VAE), or None for the mean of the draws; pixel models
      ignore them.
    apply: (params, x_t, timesteps, cond, keys=None) -> prediction, the shape of x_t. keys (B,), one
      per picture, turn dropout on.
    decode: (params, x0, clip=True) -> images in [0, 1]; clip=False keeps values outside, and their
      gradients.
    embed: (params, token_ids) -> cond; None for unconditional pixel models.
    schedule: the noise schedule that the model was or will be trained with.
    shape: shape of one x0, without the batch axis.
    image_shape: (H, W, 3) of one picture; equals `shape` for pixel models.
    hold: params -> `Held`, which every function accepts in place of params. Use it in loops that
      keep the parameters constant and do not differentiate with respect to them.
    reconstruct: (params, images) -> the autoencoder's reconstruction from the posterior mean, not
      clipped, so that gradients reach every pixel; None for models without an autoencoder.
    apply_learned: (params, x_t, timesteps, cond) -> (prediction, share), both of x_t's shape, for
      models that learn the variance of reverse steps; share is in [0, 1] (`samplers.ddpm_step`).
      None for models whose variance is fixed.
    posterior: (params, images) -> (mean, log variance) of the normal distribution of x0 that
      `encode` draws from, both of x0's shape; None for models whose encoder draws nothing.
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
  apply_learned: Callable[..., tuple[jax.Array, jax.Array]] | None = None
  posterior: Callable[[Params, jax.Array], tuple[jax.Array, jax.Array]] | None = None


def embed_prompts(
  model: DiffusionModel, params: Params, token_ids: np.ndarray, *, batch_size: int = 64
) -> np.ndarray:
  """Embeds prompts (N, L) as float32 (N, L, D), encoding each different prompt once.

  Raises:
    ConfigError: the model has no text encoder.
  """
  if model.embed is None:
    raise ConfigError("this model has no text encoder")
  different, place = np.unique(token_ids, axis=0, return_inverse=True)
  encode = jax.jit(model.embed)
  parts = []
  for start in range(0, len(different), batch_size):
    part = different[start : start + batch_size]
    # Fill up the last batch, so that only one shape is compiled.
    full = np.resize(part, (min(batch_size, len(different)), different.shape[1]))
    parts.append(np.asarray(encode(params, full))[: len(part)])
  return np.concatenate(parts)[place.reshape(-1)]
