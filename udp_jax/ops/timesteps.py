"""Distributions over timesteps, and sampling from them by key.

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
  """Every timestep equally likely: (T,) float32. The choice of UDP and of plain DDPM training."""
  if num_steps < 1:
    raise ValueError(f"num_steps must be at least 1, got {num_steps}")
  return np.full((num_steps,), 1.0 / num_steps, np.float32)


def schedule_power(schedule: NoiseSchedule, a: float, b: float) -> np.ndarray:
  """EUDP's family: p(t) proportional to abar_t^a (1 - abar_t)^b.

  A perturbation delta of the image reaches the network as sqrt(abar_t) delta, under noise of
  standard deviation sqrt(1 - abar_t), so timesteps are not equally useful for choosing delta. This
  family is a RECONSTRUCTION: it rests on the idea in the method's abstract (draw t by the noise
  schedule), not on the authors' own formula. Members:

    (0, 0)        uniform, that is UDP
    (1/2, 0)      by the coefficient that delta arrives with, sqrt(abar_t)
    (1/2, -1/2)   by the square root of the signal-to-noise ratio
    (1/2, 1/2)    favours the middle of the schedule

  Args:
    schedule: the noise schedule that supplies abar_t.
    a: power of abar_t. Larger puts more weight on small t (little noise).
    b: power of 1 - abar_t. Larger puts more weight on large t (much noise).

  Returns:
    (T,) float32 probabilities.

  Raises:
    ValueError: if a or b is not finite.
  """
  if not (np.isfinite(a) and np.isfinite(b)):
    raise ValueError(f"powers must be finite, got a={a}, b={b}")
  abar = np.asarray(schedule.alphas_cumprod, np.float64)
  # In logarithms, so that large powers neither overflow nor underflow to an all-zero vector.
  # The last abar may be 0: such a timestep is as likely as one with next to no signal.
  log_weights = a * np.log(np.maximum(abar, np.finfo(np.float32).tiny)) + b * np.log1p(-abar)
  weights = np.exp(log_weights - log_weights.max())
  return (weights / weights.sum()).astype(np.float32)


def from_probabilities(vector: ArrayLike) -> np.ndarray:
  """Checks a vector of probabilities and returns it as (T,) float32.

  Args:
    vector: (T,) non-negative and finite, adding up to 1 within 1e-3 (then scaled to exactly 1).

  Raises:
    ValueError: if it is not such a vector; the message says which condition failed.
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

  Works under `jit` and under `vmap` over keys. Never returns T, nor a timestep of probability zero,
  whatever float32 rounding does. Probabilities below 2^-23 are beneath the resolution of the draw.

  Args:
    key: a PRNG key.
    probs: (T,) probabilities; they need not add up to exactly 1.
    shape: the shape of the result.

  Returns:
    int32 timesteps in [0, T).
  """
  probs = jnp.asarray(probs, jnp.float32)
  # A parallel prefix sum rounds differently at neighbouring entries, so by itself it is neither
  # monotone nor constant over entries of probability zero; the running maximum makes it both.
  cdf = jax.lax.cummax(jnp.where(probs > 0.0, jnp.cumsum(probs), 0.0))
  total = cdf[-1]
  u = jax.random.uniform(key, shape, jnp.float32) * total
  u = jnp.minimum(u, jnp.nextafter(total, jnp.float32(0.0)))
  index = jnp.searchsorted(cdf, u, side="right", method="scan_unrolled")
  return index.astype(jnp.int32)
