"""What a diffusion model makes of pictures: one number a picture, with draws fixed beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from udp_jax import objectives
from udp_jax.metrics.batches import over_pictures
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.ops import timesteps
from udp_jax.ops.image import to_float
from udp_jax.randomness import example_keys, stream


class DenoisingLoss:
  """Denoising loss of a picture under a model, timesteps uniform, at keys that nothing else uses.

  The same pictures give every model, and the same picture in all its versions, the same timesteps
  and noises: differences are those of models and versions.
  """

  def __init__(
    self, model: DiffusionModel, *, seed: int, draws: int, per_device_batch_size: int, mesh: Mesh
  ):
    """Compiles nothing yet.

    Args:
      model: whose loss.
      seed: of the keys.
      draws: timesteps and noises a picture.
      per_device_batch_size: pictures that a device works on at a time; changes speed only.
      mesh: devices.
    """
    self._size, self._mesh = per_device_batch_size, mesh
    root = stream(jax.random.key(seed), "held-out")
    objective = objectives.denoising(model, timesteps.uniform(model.schedule.num_steps))

    @jax.jit
    def mean_loss(params: Params, images: jax.Array, ids: jax.Array, cond: Any) -> jax.Array:
      held = model.hold(params)

      def draw(total: jax.Array, step: jax.Array):
        losses, _ = objective(held, to_float(images), cond, example_keys(root, step, ids))
        return total + losses, None

      return jax.lax.scan(draw, jnp.zeros(len(ids)), jnp.arange(draws))[0] / draws

    self._mean_loss = mean_loss

  def __call__(
    self, params: Params, images: np.ndarray, cond: np.ndarray | None = None
  ) -> np.ndarray:
    """The loss (N,) of uint8 images (N, H, W, 3), with cond (N, ...) for conditioned models."""

    def of_batch(images: jax.Array, ids: jax.Array, cond: Any) -> jax.Array:
      return self._mean_loss(params, images, ids, cond)

    ids = np.arange(len(images), dtype=np.int32)
    return over_pictures(
      of_batch, images, ids, cond, per_device_batch_size=self._size, mesh=self._mesh
    ).astype(np.float64)


class Latents:
  """A VAE's codes of pictures and what they decode to."""

  def __init__(self, model: DiffusionModel, *, per_device_batch_size: int, mesh: Mesh):
    """Compiles nothing yet.

    Args:
      model: a latent model that encodes deterministically: its posterior's mean is the code.
      per_device_batch_size: pictures that a device works on at a time; changes speed only.
      mesh: devices.
    """
    self._size, self._mesh = per_device_batch_size, mesh

    @jax.jit
    def encode(params: Params, images: jax.Array) -> jax.Array:
      keys = example_keys(jax.random.key(0), 0, jnp.arange(len(images)))
      return model.encode(params, to_float(images), keys)

    @jax.jit
    def error(params: Params, images: jax.Array, codes: jax.Array) -> jax.Array:
      difference = model.decode(params, codes) - to_float(images)
      return jnp.mean(jnp.square(difference), axis=(1, 2, 3))

    self._encode, self._error = encode, error

  def codes(self, params: Params, images: np.ndarray) -> np.ndarray:
    """Scaled latents (N, h, w, C) of uint8 images (N, H, W, 3)."""
    return self._over(lambda batch: self._encode(params, batch), images)

  def reconstruction_error(
    self, params: Params, images: np.ndarray, codes: np.ndarray
  ) -> np.ndarray:
    """Mean square of VAE(x) - x on the [0, 1] scale, (N,): what IMPRESS calls inconsistency."""
    made = self._over(lambda *batch: self._error(params, *batch), images, codes)
    return made.astype(np.float64)

  def _over(self, function: Callable[..., jax.Array], *leaves: np.ndarray) -> np.ndarray:
    return over_pictures(function, *leaves, per_device_batch_size=self._size, mesh=self._mesh)


def latent_distance(codes: np.ndarray, clean_codes: np.ndarray) -> np.ndarray:
  """Root mean square difference of latents (N, ...), over the clean latents' standard deviation.

  In these units the distance means the same for VAEs of different scaling: 1 is as far as two
  unrelated pictures are, up to a factor of sqrt(2).
  """
  axes = tuple(range(1, codes.ndim))
  difference = np.square(codes.astype(np.float64) - clean_codes.astype(np.float64))
  return np.sqrt(np.mean(difference, axis=axes)) / np.std(clean_codes.astype(np.float64))
