"""Latents of pictures under a VAE: how far they move, and what they decode to."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from udp_jax.metrics.batches import over_pictures
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.ops.image import to_float
from udp_jax.ops.keys import example_keys


class Latents:
  """Encodes pictures with a VAE and measures its reconstructions."""

  def __init__(self, model: DiffusionModel, *, per_device_batch_size: int, mesh: Mesh):
    """Prepares the compiled functions; the first call compiles them.

    Args:
      model: a latent model that encodes deterministically, to the posterior mean.
      per_device_batch_size: pictures per device at a time; affects only speed.
      mesh: devices to run on.
    """
    self._size, self._mesh = per_device_batch_size, mesh

    @jax.jit
    def encode(params: Params, images: jax.Array) -> jax.Array:
      keys = example_keys(jax.random.key(0), 0, jnp.arange(len(images)))
      with jax.default_matmul_precision("highest"):
        return model.encode(params, to_float(images), keys)

    @jax.jit
    def error(params: Params, images: jax.Array, codes: jax.Array) -> jax.Array:
      with jax.default_matmul_precision("highest"):
        difference = model.decode(params, codes) - to_float(images)
      return jnp.mean(jnp.square(difference), axis=(1, 2, 3))

    self._encode, self._error = encode, error

  def codes(self, params: Params, images: np.ndarray) -> np.ndarray:
    """Returns the scaled latents (N, h, w, C) of uint8 images (N, H, W, 3)."""
    return self._over(lambda batch: self._encode(params, batch), images)

  def reconstruction_error(
    self, params: Params, images: np.ndarray, codes: np.ndarray
  ) -> np.ndarray:
    """Mean squared error of VAE(x) - x in [0, 1], (N,), which IMPRESS calls inconsistency."""
    made = self._over(lambda *batch: self._error(params, *batch), images, codes)
    return made.astype(np.float64)

  def _over(self, function: Callable[..., jax.Array], *leaves: np.ndarray) -> np.ndarray:
    return over_pictures(function, *leaves, per_device_batch_size=self._size, mesh=self._mesh)


def latent_distance(codes: np.ndarray, clean_codes: np.ndarray) -> np.ndarray:
  """Root mean square difference of latents (N, ...), over the clean latents' standard deviation.

  In these units distances are comparable between VAEs of different scaling: 1 is the distance of
  two unrelated pictures, up to a factor of sqrt(2).
  """
  axes = tuple(range(1, codes.ndim))
  difference = np.square(codes.astype(np.float64) - clean_codes.astype(np.float64))
  return np.sqrt(np.mean(difference, axis=axes)) / np.std(clean_codes.astype(np.float64))
