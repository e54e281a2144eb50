"""Distributions over timesteps, and draws from them by key.

A distribution is a plain vector of probabilities, (T,) float32. UDP draws timesteps uniformly; EUDP
draws them from a distribution derived from the noise schedule, `schedule_power`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from udp_jax.ops.schedules import NoiseSchedule


def uniform(num_steps: int) -> np.ndarray:
  """Uniform probabilities (T,) float32, as used by UDP and plain DDPM training.

  >>> uniform(4).tolist()
  [0.25, 0.25, 0.25, 0.25]
  """
  if num_steps < 1:
    raise ValueError(f"num_steps must be at least 1, got {num_steps}")
  return np.full((num_steps,), 1.0 / num_steps, np.float32)


def schedule_power(schedule: NoiseSchedule, a: float, b: float) -> np.ndarray:
  """EUDP's family: p(t) proportional to abar_t^a (1 - abar_t)^b.

  A perturbation delta of the image reaches the network as sqrt(abar_t) delta, under noise of
  standard deviation sqrt(1 - abar_t), so timesteps are not equally useful for choosing delta. This
  family is a RECONSTRUCTION: it rests on the idea in the method's abstract (draw t by the noise
  schedule), not on the authors' own formula. Members by (a, b):

    (0, 0)        uniform, as in UDP
    (1/2, 0)      proportional to sqrt(abar_t), the coefficient of delta
    (1/2, -1/2)   proportional to the square root of the signal-to-noise ratio
    (1/2, 1/2)    favours the middle of the schedule

  Args:
    schedule: the noise schedule, which defines abar_t.
    a: power of abar_t; larger values favour small t (little noise).
    b: power of 1 - abar_t; larger values favour large t (much noise).

  Returns:
    (T,) float32 probabilities.

  Raises:
    ValueError: a or b is not finite.

  >>> from udp_jax.ops import schedules
  >>> probs = schedule_power(schedules.linear(), 0.5, 0.5)
  >>> bool(probs[300] > probs[0] and probs[300] > probs[999])  # Favours the middle.
  True
  """
  if not (np.isfinite(a) and np.isfinite(b)):
    raise ValueError(f"powers must be finite, got a={a}, b={b}")
  abar = np.asarray(schedule.alphas_cumprod, np.float64)
  # Use logarithms, so that large powers neither overflow nor underflow to an all-zero vector. The
  # last abar may be 0: such a timestep gets the weight of one with almost no signal.
  log_weights = a * np.log(np.maximum(abar, np.finfo(np.float32).tiny)) + b * np.log1p(-abar)
  weights = np.exp(log_weights - log_weights.max())
  return (weights / weights.sum()).astype(np.float32)


def measured(grid: ArrayLike, usefulness: ArrayLike, num_steps: int) -> np.ndarray:
  """The distribution proportional to a measured usefulness of timesteps, where it is positive.

  Between the measured timesteps the usefulness is interpolated linearly; beyond the first and the
  last it stays constant.

  Args:
    grid: (K,) measured timesteps, increasing; they need not be whole numbers.
    usefulness: (K,) what a step at each of them is worth; negative values count as 0.
    num_steps: T, the length of the noise schedule.

  Returns:
    (T,) float32 probabilities.

  Raises:
    ValueError: the grid does not increase or leaves [0, T - 1], shapes differ, a value is not
      finite, or no timestep is useful.

  >>> [round(9 * float(p), 3) for p in measured([0, 2], [1.0, 3.0], 4)]
  [1.0, 2.0, 3.0, 3.0]
  """
  grid, values = np.asarray(grid, np.float64), np.asarray(usefulness, np.float64)
  if grid.ndim != 1 or grid.shape != values.shape or not grid.size:
    raise ValueError(f"grid {grid.shape} and usefulness {values.shape} must be equal vectors")
  if not (np.isfinite(grid).all() and np.isfinite(values).all()):
    raise ValueError("the grid and the usefulness must be finite")
  if (np.diff(grid) <= 0).any() or grid[0] < 0 or grid[-1] > num_steps - 1:
    raise ValueError(f"the grid must increase within [0, {num_steps - 1}]")
  weights = np.maximum(np.interp(np.arange(num_steps), grid, values), 0.0)
  if not weights.any():
    raise ValueError("no timestep is useful: all measured values are negative or 0")
  return (weights / weights.sum()).astype(np.float32)


def from_probabilities(vector: ArrayLike) -> np.ndarray:
  """Checks a vector of probabilities and returns it as (T,) float32.

  Args:
    vector: (T,) non-negative and finite, with a sum within 1e-3 of 1 (then scaled to exactly 1).

  Raises:
    ValueError: a condition fails; the message says which one.

  >>> from_probabilities([0.25, 0.75]).tolist()
  [0.25, 0.75]
  """
  probs = np.asarray(vector, np.float64)
  if probs.ndim != 1 or probs.size == 0:
    raise ValueError(f"timestep probabilities must be a non-empty vector, got shape {probs.shape}")
  if not np.all(np.isfinite(probs)):
    raise ValueError("timestep probabilities must be finite")
  if np.any(probs < 0.0):
    raise ValueError(f"timestep probabilities must not be negative, smallest is {probs.min():g}")
  total = probs.sum()
  if abs(total - 1.0) > 1e-3:
    raise ValueError(f"timestep probabilities must add up to 1, they add up to {total:g}")
  return (probs / total).astype(np.float32)


def sample(key: jax.Array, probs: ArrayLike, shape: tuple[int, ...] = ()) -> jax.Array:
  """Draws timesteps by inverting the cumulative distribution.

  It works under `jit` and under `vmap` over keys. It never returns T or a timestep of probability
  zero, despite float32 rounding. Probabilities below 2^-23 are below the resolution of the draw.

  Args:
    key: a PRNG key.
    probs: (T,) probabilities, whose sum need not be exactly 1.
    shape: shape of the result.

  Returns:
    int32 timesteps in [0, T).

  >>> sample(jax.random.key(0), [0.0, 1.0, 0.0], (4,)).tolist()
  [1, 1, 1, 1]
  """
  probs = jnp.asarray(probs, jnp.float32)
  # A parallel prefix sum rounds neighbouring entries differently, so alone it is neither monotone
  # nor constant over entries of probability zero; the running maximum makes it both.
  cdf = jax.lax.cummax(jnp.where(probs > 0.0, jnp.cumsum(probs), 0.0))
  total = cdf[-1]
  u = jax.random.uniform(key, shape, jnp.float32) * total
  u = jnp.minimum(u, jnp.nextafter(total, jnp.float32(0.0)))
  index = jnp.searchsorted(cdf, u, side="right", method="scan_unrolled")
  return index.astype(jnp.int32)
