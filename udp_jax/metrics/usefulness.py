"""Which timesteps are useful to a perturbation: first-order ascent of the loss by a sign step.

A step of a perturbation draws one timestep t and one noise, and moves each pixel by the sign of the
gradient of the denoising loss there. What it is for is the loss over all timesteps:

  u(t) = E_noise < sign(g_t), G >,   G = E over uniform t and noise of g_t

with g_t the gradient of the loss at t with respect to the picture, through the encoder of a latent
model. u(t) is the ascent of the uniform loss per unit of step size, to first order; under a
distribution p over timesteps a step ascends sum_t p(t) u(t). It is measured where the pictures are:
clean pictures measure the first step.

Timesteps are cut into strata, and t is drawn uniformly within one. A sign and the G that it meets
come from different draws; otherwise each noise would look useful for its own gradient.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from udp_jax.models.base import DiffusionModel, Params
from udp_jax.objectives.denoising import denoising
from udp_jax.ops.image import to_float
from udp_jax.ops.keys import example_keys, stream

_log = logging.getLogger(__name__)


class Usefulness(NamedTuple):
  """Measured usefulness, by picture and stratum of timesteps.

  Attributes:
    edges: (K + 1,) int; stratum k holds the timesteps in [edges[k], edges[k + 1]).
    values: (N, K) float64, u averaged over a stratum, for each picture.
  """

  edges: np.ndarray
  values: np.ndarray

  @property
  def centres(self) -> np.ndarray:
    """(K,) float64, mean timestep of each stratum."""
    return 0.5 * (self.edges[:-1] + self.edges[1:] - 1)

  def ascent(self, probs: ArrayLike) -> np.ndarray:
    """Returns the expected ascent (N,) of a sign step with timesteps drawn from probs (T,).

    >>> found = Usefulness(np.array([0, 2, 4]), np.array([[3.0, 1.0]]))
    >>> found.ascent([0.25] * 4).tolist(), found.ascent([0.5, 0.5, 0.0, 0.0]).tolist()
    ([2.0], [3.0])
    """
    shares = np.add.reduceat(np.asarray(probs, np.float64), self.edges[:-1])
    return self.values @ shares


def strata(num_steps: int, count: int) -> np.ndarray:
  """Returns the edges (K + 1,) of `count` even strata of T timesteps; of T if there are fewer.

  >>> strata(10, 4).tolist()
  [0, 2, 5, 8, 10]
  """
  return np.round(np.linspace(0, num_steps, min(count, num_steps) + 1)).astype(np.int64)


def measure(
  model: DiffusionModel,
  params: Params,
  images: np.ndarray,
  cond: np.ndarray | None = None,
  *,
  num_strata: int = 32,
  draws: int = 2,
  seed: int = 0,
  batch_size: int = 16,
) -> Usefulness:
  """Measures the usefulness of timesteps for pictures, as they are.

  Args:
    model: the model whose loss perturbations raise.
    params: its trained parameters.
    images: uint8 (N, H, W, C), where the step is taken.
    cond: (N, ...) conditioning, or None.
    num_strata: number of strata of timesteps.
    draws: (timestep, noise) pairs of a picture in each stratum, at least 2.
    seed: decides every draw, together with a picture's number.
    batch_size: pictures at a time; changes only memory and speed.

  Raises:
    ValueError: there are fewer than 2 draws.

  >>> from udp_jax.models import toy
  >>> model = toy.on_pixels()
  >>> images = np.full((2, 8, 8, 3), 200, np.uint8)
  >>> measure(model, model.init(jax.random.key(0)), images, num_strata=5).values.shape
  (2, 5)
  """
  if draws < 2:
    raise ValueError(f"at least 2 draws are needed, for signs and gradients apart; got {draws}")
  edges = strata(model.schedule.num_steps, num_strata)
  count, counts = len(edges) - 1, np.diff(edges)
  steps = np.arange(edges[-1])
  inside = (steps >= edges[:-1, None]) & (steps < edges[1:, None])
  tables = jnp.asarray(inside / counts[:, None], jnp.float32)
  shares = jnp.asarray(counts / edges[-1], jnp.float32)
  root = stream(jax.random.key(seed), "usefulness")

  @jax.jit
  def of_batch(params: Params, levels: jax.Array, ids: jax.Array, cond: Any) -> jax.Array:
    held, images = model.hold(params), to_float(levels)

    def at_stratum(draw: jax.Array, total: jax.Array, k: jax.Array):
      objective = denoising(model, tables[k])
      keys = example_keys(root, draw * count + k, ids)
      gradient = jax.grad(lambda x: objective(held, x, cond, keys)[0].sum())(images)
      return total + shares[k] * gradient, jnp.sign(gradient).astype(jnp.int8)

    def one_draw(draw: jax.Array):
      add = lambda total, k: at_stratum(draw, total, k)
      return jax.lax.scan(add, jnp.zeros_like(images), jnp.arange(count))

    uniform, signs = jax.lax.map(one_draw, jnp.arange(draws))
    others = (uniform.sum(0) - uniform) / (draws - 1)

    def ascents(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
      other, signs = pair
      axes = tuple(range(1, other.ndim))
      return jax.lax.map(lambda sign: jnp.sum(sign * other, axes), signs)

    return jax.lax.map(ascents, (others, signs)).mean(0).T

  size, parts = min(batch_size, len(images)), []
  for start in range(0, len(images), size):
    # Repeats fill the last batch, so that only one size is compiled.
    rows = np.arange(start, start + size) % len(images)
    given = None if cond is None else cond[rows]
    values = of_batch(params, images[rows], rows.astype(np.int32), given)
    parts.append(np.asarray(values, np.float64)[: len(images) - start])
    _log.info("measured %d of %d pictures", min(start + size, len(images)), len(images))
  return Usefulness(edges, np.concatenate(parts))


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
  """Returns the mean of (N,) and its standard error over pictures; NaN for one picture.

  >>> mean_and_error(np.array([1.0, 3.0]))
  (2.0, 1.0)
  """
  error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
  return float(values.mean()), float(error)
