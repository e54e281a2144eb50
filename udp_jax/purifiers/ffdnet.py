"""FFDNet: a trained denoiser that is told how strong the noise is.

The network is that of Zhang et al. 2018 (arXiv:1710.04026), in `models.ffdnet`; the weights are
those of the package `ffdnet` 0.1.4, trained on white noise. It takes off what looks like that: much
of a perturbation by sign steps, little of a smooth one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from udp_jax.models import ffdnet as network
from udp_jax.models import large_pictures
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.purifiers.base import InitFn, Purifier

# Wider than what the network sees, and at whole blocks of its, so that windows change nothing.
_WINDOWS = large_pictures.Windows(1024, context=32, multiple=2)


def ffdnet(
  model: DiffusionModel | None, *, std: float = 15 / 255, weights: str | network.Params = ""
) -> Purifier:
  """Denoises every picture as if it had noise of a given strength.

  Args:
    model: unused.
    std: standard deviation that the network is told, on [0, 1], the paper's sigma; the weights were
      trained for 0 to 75 / 255. Perturbations of radius r have at most r; no publication on
      protections says what it used.
    weights: path of the file of weights; "" for the installed package's; or parameters, for other
      networks of this layout.

  Raises:
    MissingDataError: the package with the weights is not installed.
    BadDataError: the file is not the published one.

  >>> blank = tuple((jnp.zeros((3, 3, c, d)), jnp.zeros(d)) for c, d in ((15, 4), (4, 12)))
  >>> images, keys = jnp.full((1, 9, 6, 3), 0.5), jax.random.split(jax.random.key(0), 1)
  >>> method = ffdnet(None, weights=blank)
  >>> method.apply(method.init(keys[0]), keys, images).mean().tolist()
  0.5
  """
  del model

  def apply(params: Params, keys: jax.Array, images: jax.Array) -> jax.Array:
    del keys
    return denoised(params, images, jnp.full((), std))

  return Purifier(loaded(weights), apply)


def loaded(weights: str | network.Params) -> InitFn:
  """`Purifier.init` of a method whose only parameters are the denoiser's, which are read now.

  Raises:
    MissingDataError, BadDataError: as `ffdnet`.

  >>> loaded(())(jax.random.key(0))
  ()
  """
  params = network.load(weights or None) if isinstance(weights, str) else weights

  def init(key: jax.Array, model_params: Params | None = None) -> Params:
    del key, model_params
    return params

  return init


def denoised(params: network.Params, images: jax.Array, std: jax.Array) -> jax.Array:
  """Denoises pictures of any size; large ones in windows.

  Args:
    params: the network's parameters.
    images: (B, H, W, 3) in [0, 1].
    std: the noise's standard deviation on [0, 1], () or (B,).

  Returns:
    (B, H, W, 3) in [0, 1].

  >>> blank = ((jnp.zeros((3, 3, 15, 12)), jnp.full(12, 0.25)),)
  >>> denoised(blank, jnp.ones((1, 4, 4, 3)), jnp.zeros(())).max().tolist()
  0.75
  """
  height, width = images.shape[1:3]
  each = jnp.broadcast_to(std, (images.shape[0],))[:, None, None, None]
  # The noise is a channel, so that it stays with its picture.
  joined = jnp.concatenate([images, jnp.broadcast_to(each, (*images.shape[:3], 1))], -1)

  def clean(x: jax.Array) -> jax.Array:
    return jnp.concatenate([network.denoise(params, x[..., :3], x[:, 0, 0, 3]), x[..., 3:]], -1)

  done = large_pictures.apply(clean, network.to_even(joined), _WINDOWS)
  return jnp.clip(done[:, :height, :width, :3], 0.0, 1.0)
