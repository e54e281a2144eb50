"""A denoiser for people who do not know how strong the noise is: it is measured in the picture.

The strength is Donoho's (1995) estimate from the finest diagonal details of a Haar transform, their
median absolute value divided by 0.6745, and FFDNet (`purifiers.ffdnet`) takes off as much. A
perturbation of low frequencies has no such details, so it is not noticed: that is a finding about
the perturbation, not a fault of the estimate.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from udp_jax.models import ffdnet as network
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.purifiers.base import Purifier
from udp_jax.purifiers.ffdnet import denoised, loaded

# Median of |x| for a standard normal x.
_MEDIAN = 0.674489750196
# The strongest noise that the network was trained on.
_MOST = 75 / 255


def blind_denoiser(
  model: DiffusionModel | None, *, gain: float = 1.0, weights: str | network.Params = ""
) -> Purifier:
  """Estimates the noise of every picture, and denoises it by FFDNet.

  Args:
    model: unused.
    gain: what the estimate is multiplied by; more than 1 removes more than was measured. What the
      network is told ends at 75 / 255, the most that it was trained on.
    weights: as for `ffdnet`.

  Raises:
    MissingDataError: the package with the weights is not installed.
    BadDataError: the file is not the published one.

  >>> blank = tuple((jnp.zeros((3, 3, c, d)), jnp.zeros(d)) for c, d in ((15, 4), (4, 12)))
  >>> images, keys = jnp.full((1, 9, 6, 3), 0.5), jax.random.split(jax.random.key(0), 1)
  >>> method = blind_denoiser(None, weights=blank)
  >>> method.apply(method.init(keys[0]), keys, images).mean().tolist()
  0.5
  """
  del model

  def apply(params: Params, keys: jax.Array, images: jax.Array) -> jax.Array:
    del keys
    return denoised(params, images, jnp.minimum(gain * noise_std(images), _MOST))

  return Purifier(loaded(weights), apply)


def noise_std(images: jax.Array) -> jax.Array:
  """Estimates the standard deviation of white noise in pictures.

  Args:
    images: (B, H, W, C) float; a last odd row or column is not looked at.

  Returns:
    (B,), the mean of the channels' estimates, in the pictures' unit; 0 for a single row of pixels.

  >>> noise = 0.1 * jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
  >>> round(float(noise_std(0.5 + noise)[0]), 2)
  0.1
  """
  count, height, width, channels = images.shape
  rows, columns = height // 2, width // 2
  if not rows * columns:
    return jnp.zeros(count)
  x = images[:, : 2 * rows, : 2 * columns].reshape(count, rows, 2, columns, 2, channels)
  details = 0.5 * (x[:, :, 0, :, 0] - x[:, :, 0, :, 1] - x[:, :, 1, :, 0] + x[:, :, 1, :, 1])
  return jnp.mean(jnp.median(jnp.abs(details), axis=(1, 2)), axis=-1) / _MEDIAN
