"""Held-out denoising losses of pictures under a model, with random draws fixed by a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from udp_jax.data import batches as batches_lib
from udp_jax.metrics.batches import over_pictures
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.objectives.denoising import denoising
from udp_jax.ops import timesteps
from udp_jax.ops.image import to_float
from udp_jax.ops.keys import example_keys, stream


def one_draw(
  objective: Callable[..., Any],
  params: Params,
  levels: ArrayLike,
  cond: Any,
  key: jax.Array,
  step: ArrayLike,
  ids: ArrayLike,
) -> jax.Array:
  """Denoising loss (B,) of pictures, each at one (timestep, noise) pair.

  Products are computed in the highest precision, whatever the model's setting is.

  Args:
    objective: (params, images, cond, keys) -> (losses (B,), aux), from `objectives.denoising`.
    params: the model's parameters.
    levels: (B, H, W, 3) uint8.
    cond: (B, ...) conditioning, or None.
    key: root key of the draws.
    step: (), number of the draw.
    ids: (B,) integers; a picture's draws depend only on its id.
  """
  with jax.default_matmul_precision("highest"):
    return objective(params, to_float(levels), cond, example_keys(key, step, ids))[0]


def over_draws(
  objective: Callable[..., Any],
  key: jax.Array,
  draws: int,
  reduce: Callable[[jax.Array], jax.Array],
) -> Callable[..., jax.Array]:
  """Sums `reduce(losses)` over the draws, in one scan.

  Args:
    objective: (params, images, cond, keys) -> (losses (B,), aux), from `objectives.denoising`.
    key: root key of the draws.
    draws: number of (timestep, noise) pairs per picture.
    reduce: losses (B,) -> the quantity to sum.

  Returns:
    (params, levels (B, H, W, 3) uint8, ids (B,), cond (B, ...) or None) -> sum.
  """

  def total(params: Params, levels: jax.Array, ids: jax.Array, cond: Any) -> jax.Array:
    def add(total: jax.Array, step: jax.Array):
      return total + reduce(one_draw(objective, params, levels, cond, key, step, ids)), None

    shape = jax.eval_shape(reduce, jax.ShapeDtypeStruct(ids.shape, jnp.float32)).shape
    return jax.lax.scan(add, jnp.zeros(shape), jnp.arange(draws))[0]

  return total


class DenoisingLoss:
  """Denoising loss of a picture under a model, with uniform timesteps and keys of its own stream.

  All models, and all versions of a picture, get the same timesteps and noises, so that differences
  come only from the models and versions.
  """

  def __init__(
    self, model: DiffusionModel, *, seed: int, draws: int, per_device_batch_size: int, mesh: Mesh
  ):
    """Prepares the compiled functions; the first call compiles them.

    Args:
      model: the model whose loss is measured.
      seed: seed of the timesteps and noises.
      draws: number of (timestep, noise) pairs per picture.
      per_device_batch_size: pictures per device at a time; affects only speed.
      mesh: devices to run on.
    """
    self._size, self._mesh = per_device_batch_size, mesh
    root = stream(jax.random.key(seed), "held-out")
    objective = denoising(model, timesteps.uniform(model.schedule.num_steps))

    @jax.jit
    def mean_loss(params: Params, images: jax.Array, ids: jax.Array, cond: Any) -> jax.Array:
      total = over_draws(objective, root, draws, lambda losses: losses)
      return total(model.hold(params), images, ids, cond) / draws

    self._mean_loss = mean_loss

  def __call__(
    self, params: Params, images: np.ndarray, cond: np.ndarray | None = None
  ) -> np.ndarray:
    """Returns the loss (N,) of uint8 images (N, H, W, 3); conditioned models need cond (N, ...)."""

    def of_batch(images: jax.Array, ids: jax.Array, cond: Any) -> jax.Array:
      return self._mean_loss(params, images, ids, cond)

    ids = np.arange(len(images), dtype=np.int32)
    return over_pictures(
      of_batch, images, ids, cond, per_device_batch_size=self._size, mesh=self._mesh
    ).astype(np.float64)


def denoising_loss(
  model: DiffusionModel,
  *,
  seed: int = 0,
  draws: int = 8,
  per_device_batch_size: int = 64,
  probs: ArrayLike | None = None,
) -> Callable[..., float]:
  """Returns a function that measures trained parameters by their mean denoising loss.

  With the same pictures and seed, all models get the same timesteps and noises, so that two models
  can be compared with a fraction of the noise of their training losses.

  Args:
    model: the diffusion model.
    seed: seed of the timesteps and noises.
    draws: number of (timestep, noise) pairs per picture.
    per_device_batch_size: number of pictures in one call.
    probs: (T,) distribution over timesteps; None for uniform.

  Returns:
    (params, images uint8 (N, H, W, 3), cond (N, ...) or None) -> loss; compiled once.
  """
  key = jax.random.key(seed)
  uniform = timesteps.uniform(len(model.schedule.alphas_cumprod))
  objective = denoising(model, uniform if probs is None else probs)

  @jax.jit
  def batch_loss(params: Params, batch: batches_lib.Batch):
    total = over_draws(objective, key, draws, lambda losses: jnp.sum(losses * batch.weight))
    return total(params, batch.images, batch.ids, batch.cond)

  def loss(params: Params, images: np.ndarray, cond: np.ndarray | None = None) -> float:
    batches = batches_lib.make_batches(images, per_device_batch_size, cond=cond)
    rows = (jax.tree.map(lambda leaf, i=i: leaf[i], batches) for i in range(len(batches.ids)))
    return sum(float(batch_loss(params, row)) for row in rows) / (len(images) * draws)

  return loss
