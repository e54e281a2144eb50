"""DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2): good samples in 20 steps.

A multistep solver of the probability-flow ODE in the half log-SNR lambda, for the network's x0. The
first and the last step are of first order, all others of second.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.ops import chain, schedules
from udp_jax.ops.chain import Known, Predict
from udp_jax.ops.schedules import NoiseSchedule

_LEAST_ABAR = 2.0**-24


def dpm_solver_pp_2m(
  key: jax.Array,
  predict: Predict,
  schedule: NoiseSchedule,
  x_init: jax.Array | tuple[int, ...],
  *,
  num_steps: int = 20,
  clip_sample: bool = True,
  spacing: str = "linspace",
  steps_offset: int = 0,
  first_step: int = 0,
  known: Known | None = None,
) -> jax.Array:
  """Samples with DPM-Solver++(2M), midpoint form; deterministic but for the initial noise.

  Args:
    key: a PRNG key, for the initial noise (when x_init is a shape).
    predict: the network, see `ops.samplers`.
    schedule: the noise schedule.
    x_init: the shape (B, ...) to sample from pure noise, or x_t at the chain's first timestep.
    num_steps: number of steps of the whole chain.
    clip_sample: clip the predicted x0 to [-1, 1]; turn off for latents.
    spacing: see `chain.spaced_timesteps`, which is called with skip_last.
    steps_offset: see `chain.spaced_timesteps`.
    first_step: index in `spaced_timesteps` where the chain starts; needs an array x_init.
    known: a region to keep.

  Returns:
    (B, ...) float32 on the model's range.

  Raises:
    ValueError: for options that do not fit together; the message names them.
  """
  steps = chain.spaced_timesteps(
    schedule.num_steps, num_steps, spacing=spacing, steps_offset=steps_offset, skip_last=True
  )
  rows = (steps, *_coefficients(schedule, steps, first_step))

  def step(key, x_t, prediction, row, previous_x0):
    del key  # Deterministic.
    timestep, decay, gain, correction = row
    x0 = schedules.predict_x0(schedule, x_t, prediction.astype(jnp.float32), timestep)
    if clip_sample:
      x0 = jnp.clip(x0, -1.0, 1.0)
    return decay * x_t + gain * x0 + correction * (x0 - previous_x0), x0

  return chain.run(
    key,
    predict,
    step,
    schedule,
    x_init,
    steps,
    rows=rows,
    remember=True,
    first_step=first_step,
    known=known,
  )


def _coefficients(
  schedule: NoiseSchedule, steps: np.ndarray, first_step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(num_steps,) factors of x_t, of x0, and of x0 minus the x0 one step earlier.

  From lambda_s to lambda_t, h = lambda_t - lambda_s: sigma_t / sigma_s, a_t (1 - exp(-h)), and half
  of the latter times h / h_previous. The chain ends at the data, where h is infinite.
  """
  abar = np.asarray(schedule.alphas_cumprod, np.float64)[steps]
  # lambda of pure noise is infinite; diffusers puts it here too.
  abar = np.maximum(abar, _LEAST_ABAR)
  signal, sigma = np.sqrt(abar), np.sqrt(1.0 - abar)
  signal_next, sigma_next = np.append(signal[1:], 1.0), np.append(sigma[1:], 0.0)
  decay = sigma_next / sigma
  gain = signal_next - signal * decay
  log_ratio = np.log(signal) - np.log(sigma)
  correction = np.zeros_like(gain)
  h = np.diff(log_ratio)  # Of every step but the last, which has none.
  correction[1:-1] = 0.5 * gain[1:-1] * h[1:] / h[:-1]
  correction[first_step] = 0.0  # Nothing came before.
  return decay.astype(np.float32), gain.astype(np.float32), correction.astype(np.float32)
