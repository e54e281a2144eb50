"""Noise schedules of variance-preserving diffusion, and conversions between x0, noise and x_t.

A schedule consists of abar_t = prod_{s <= t} (1 - beta_s) and the network's prediction type:

  x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise                 (Ho et al. 2020, equation 4)

  "epsilon"       the network predicts noise                      (Ho et al. 2020)
  "v_prediction"  it predicts sqrt(abar) noise - sqrt(1-abar) x0  (Salimans & Ho 2022, appendix D)
  "sample"        it predicts x0

Timesteps are integers in [0, T), shaped (B,), and broadcast against arrays shaped (B, ...).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


class NoiseSchedule(NamedTuple):
  """A fixed noise schedule. Close over it as a constant rather than passing it through `jit`.

  Attributes:
    alphas_cumprod: (T,) float32, abar_t in (0, 1), decreasing; the last may be 0 (`zero_snr`). It
      is a NumPy array, so that building a schedule does not start an accelerator backend.
    prediction_type: meaning of the network's output, one of `PREDICTION_TYPES`.
  """

  alphas_cumprod: np.ndarray
  prediction_type: str

  @property
  def num_steps(self) -> int:
    """The number of timesteps T."""
    return self.alphas_cumprod.shape[0]


def from_betas(betas: ArrayLike, *, prediction_type: str = "epsilon") -> NoiseSchedule:
  """Builds a schedule from betas (T,), accumulated in float64.

  The last beta may be 1: the chain then ends in pure noise, as after `zero_snr`.

  Raises:
    ValueError: betas are not one-dimensional in (0, 1), or round abar to 0 or 1; or the prediction
      type is unknown, or "epsilon" with a last beta of 1.

  >>> from_betas([0.5, 0.5]).alphas_cumprod.tolist()
  [0.5, 0.25]
  """
  betas64 = np.asarray(betas, np.float64)
  if betas64.ndim != 1 or betas64.size == 0:
    raise ValueError(f"betas must be a non-empty vector, got shape {betas64.shape}")
  ends_in_noise = betas64[-1] == 1.0 and len(betas64) > 1 and prediction_type != "epsilon"
  inner = betas64[:-1] if ends_in_noise else betas64
  if not np.all((inner > 0.0) & (inner < 1.0)):
    raise ValueError("every beta must lie strictly between 0 and 1")
  if prediction_type not in PREDICTION_TYPES:
    raise ValueError(f"prediction_type {prediction_type!r} is not one of {PREDICTION_TYPES}")
  alphas_cumprod = np.cumprod(1.0 - betas64).astype(np.float32)
  if alphas_cumprod[0] == 1.0 or alphas_cumprod[: len(inner)][-1] == 0.0:
    raise ValueError("betas leave abar at 0 or 1 in float32, where x0 or the noise is undefined")
  return NoiseSchedule(alphas_cumprod, prediction_type)


def linear(
  num_steps: int = 1000,
  *,
  beta_start: float = 1e-4,
  beta_end: float = 0.02,
  prediction_type: str = "epsilon",
) -> NoiseSchedule:
  """Schedule with evenly spaced betas (Ho et al. 2020, section 4).

  >>> linear().num_steps
  1000
  """
  betas = np.linspace(beta_start, beta_end, num_steps, dtype=np.float64)
  return from_betas(betas, prediction_type=prediction_type)


def scaled_linear(
  num_steps: int = 1000,
  *,
  beta_start: float = 0.00085,
  beta_end: float = 0.012,
  prediction_type: str = "epsilon",
) -> NoiseSchedule:
  """Schedule with evenly spaced roots of betas (latent diffusion, Rombach et al. 2022).

  >>> scaled_linear(prediction_type="v_prediction").prediction_type
  'v_prediction'
  """
  roots = np.linspace(beta_start**0.5, beta_end**0.5, num_steps, dtype=np.float64)
  return from_betas(roots**2, prediction_type=prediction_type)


def cosine(
  num_steps: int = 1000,
  *,
  s: float = 0.008,
  max_beta: float = 0.999,
  prediction_type: str = "epsilon",
) -> NoiseSchedule:
  """Schedule with squared-cosine abar (Nichol & Dhariwal 2021, equation 17).

  Betas are capped at `max_beta`; the offset `s` keeps the first betas from vanishing.

  >>> abar = cosine(4).alphas_cumprod
  >>> bool(abar[0] > 0.8 and abar[-1] < 1e-3)
  True
  """
  u = np.arange(num_steps + 1, dtype=np.float64) / num_steps
  f = np.cos((u + s) / (1.0 + s) * np.pi / 2.0) ** 2
  betas = np.minimum(1.0 - f[1:] / f[:-1], max_beta)
  return from_betas(betas, prediction_type=prediction_type)


def zero_snr(schedule: NoiseSchedule) -> NoiseSchedule:
  """Makes the last timestep pure noise (Lin et al. 2023, arXiv:2305.08891, algorithm 1).

  sqrt(abar) is shifted so that its last value is 0, then scaled so that its first is unchanged.

  Raises:
    ValueError: the network predicts noise, which does not determine x0 without a signal.

  >>> float(zero_snr(linear(prediction_type="v_prediction")).alphas_cumprod[-1])
  0.0
  """
  if schedule.prediction_type == "epsilon":
    raise ValueError("a schedule that ends in pure noise needs v_prediction or sample, not epsilon")
  signal = np.sqrt(np.asarray(schedule.alphas_cumprod, np.float64))
  signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
  return schedule._replace(alphas_cumprod=np.square(signal).astype(np.float32))


def gather(values: ArrayLike, timesteps: ArrayLike, ndim: int) -> jax.Array:
  """Returns values[timesteps] with trailing axes of length one, to broadcast to `ndim` axes.

  >>> gather(jnp.array([0.0, 0.5, 1.0]), jnp.array([2, 1]), 4).shape
  (2, 1, 1, 1)
  """
  picked = jnp.asarray(values)[jnp.asarray(timesteps)]
  return picked.reshape(picked.shape + (1,) * (ndim - picked.ndim))


def _coefficients(
  schedule: NoiseSchedule, timesteps: ArrayLike, ndim: int
) -> tuple[jax.Array, jax.Array]:
  """Returns sqrt(abar_t) and sqrt(1 - abar_t), broadcastable to `ndim` axes."""
  abar = gather(schedule.alphas_cumprod, timesteps, ndim)
  return jnp.sqrt(abar), jnp.sqrt(1.0 - abar)


def add_noise(
  schedule: NoiseSchedule, x0: jax.Array, noise: jax.Array, timesteps: ArrayLike
) -> jax.Array:
  """Returns x_t for given noise: sqrt(abar_t) x0 + sqrt(1 - abar_t) noise.

  Args:
    schedule: the noise schedule.
    x0: (B, ...) in the model's range.
    noise: (B, ...) standard normal.
    timesteps: (B,) or scalar integers in [0, T).

  Returns:
    (B, ...) in at least float32, because the coefficients are float32.

  >>> schedule = from_betas([0.75])
  >>> add_noise(schedule, jnp.ones((1, 2)), jnp.zeros((1, 2)), 0).tolist()
  [[0.5, 0.5]]
  """
  signal, sigma = _coefficients(schedule, timesteps, x0.ndim)
  return signal * x0 + sigma * noise


def predict_x0(
  schedule: NoiseSchedule, x_t: jax.Array, prediction: jax.Array, timesteps: ArrayLike
) -> jax.Array:
  """Returns the x0 implied by a network's output and `schedule.prediction_type`, not clipped.

  >>> schedule, x0, noise = linear(), jnp.ones((1, 2)), jnp.full((1, 2), 0.5)
  >>> predict_x0(schedule, add_noise(schedule, x0, noise, 300), noise, 300).round(3).tolist()
  [[1.0, 1.0]]
  """
  signal, sigma = _coefficients(schedule, timesteps, x_t.ndim)
  match schedule.prediction_type:
    case "epsilon":
      return (x_t - sigma * prediction) / signal
    case "v_prediction":
      return signal * x_t - sigma * prediction
    case "sample":
      return prediction
  raise ValueError(_unknown(schedule))


def predict_noise(
  schedule: NoiseSchedule, x_t: jax.Array, prediction: jax.Array, timesteps: ArrayLike
) -> jax.Array:
  """Returns the noise implied by a network's output and `schedule.prediction_type`.

  >>> schedule = linear(prediction_type="sample")
  >>> x0, noise = jnp.ones((1, 2)), jnp.full((1, 2), 0.5)
  >>> predict_noise(schedule, add_noise(schedule, x0, noise, 300), x0, 300).round(3).tolist()
  [[0.5, 0.5]]
  """
  signal, sigma = _coefficients(schedule, timesteps, x_t.ndim)
  match schedule.prediction_type:
    case "epsilon":
      return prediction
    case "v_prediction":
      return signal * prediction + sigma * x_t
    case "sample":
      return (x_t - signal * prediction) / sigma
  raise ValueError(_unknown(schedule))


def training_target(
  schedule: NoiseSchedule, x0: jax.Array, noise: jax.Array, timesteps: ArrayLike
) -> jax.Array:
  """Returns the ideal network output for `add_noise(schedule, x0, noise, timesteps)`.

  >>> training_target(linear(), jnp.ones((1, 2)), jnp.full((1, 2), 0.5), 300).tolist()  # The noise.
  [[0.5, 0.5]]
  """
  signal, sigma = _coefficients(schedule, timesteps, x0.ndim)
  match schedule.prediction_type:
    case "epsilon":
      return noise
    case "v_prediction":
      return signal * noise - sigma * x0
    case "sample":
      return x0
  raise ValueError(_unknown(schedule))


def snr(schedule: NoiseSchedule, timesteps: ArrayLike | None = None) -> jax.Array:
  """Signal-to-noise ratio abar / (1 - abar) at `timesteps`, or at all timesteps, (T,).

  >>> snr(from_betas([0.5])).tolist()
  [1.0]
  """
  abar = jnp.asarray(schedule.alphas_cumprod)
  if timesteps is not None:
    abar = abar[jnp.asarray(timesteps)]
  return abar / (1.0 - abar)


def _unknown(schedule: NoiseSchedule) -> str:
  return f"prediction_type {schedule.prediction_type!r} is not one of {PREDICTION_TYPES}"
