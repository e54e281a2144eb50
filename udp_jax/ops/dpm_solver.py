"""DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2): good samples in 20 steps.

A multistep solver of the probability-flow ODE in the half log-SNR lambda, applied to the predicted
x0. The first and last steps are first-order, the others second-order.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.ops import chain, schedules
from udp_jax.ops.chain import Known, Predict, Solver, Steps
from udp_jax.ops.schedules import NoiseSchedule

_LEAST_ABAR = 2.0**-24


def dpm_solver_pp_2m(
  key: jax.Array,
  predict: Predict,
  schedule: NoiseSchedule,
  x_init: jax.Array | tuple[int, ...],
  *,
  steps: Steps = Steps(20),
  clip_sample: bool = True,
  first_step: int = 0,
  known: Known | None = None,
) -> jax.Array:
  """Samples with DPM-Solver++(2M) in midpoint form; deterministic except for the initial noise.

  Args:
    key: PRNG key for the initial noise, used if x_init is a shape.
    predict: (x_t, timesteps (B,)) -> the network's prediction.
    schedule: the noise schedule.
    x_init: a shape (B, ...), to start from pure noise, or x_t at the chain's first timestep.
    steps: the timesteps to visit, with "linspace" as default spacing.
    clip_sample: whether to clip the predicted x0 to [-1, 1]; turn it off for latents.
    first_step: index of the chain's first step; if above 0, x_init must be an array.
    known: the region to keep fixed, or None.

  Returns:
    (B, ...) float32 in the model's range.

  Raises:
    ValueError: options do not fit together; the message names them.

  >>> schedule = schedules.linear(prediction_type="sample")
  >>> predict = lambda x_t, timesteps: jnp.full_like(x_t, 0.5)  # Knows one picture.
  >>> x0 = dpm_solver_pp_2m(jax.random.key(0), predict, schedule, (1, 2), steps=Steps(5))
  >>> x0.round(3).tolist()
  [[0.5, 0.5]]
  """
  visited = chain.spaced(schedule, steps, "linspace", skip_last=True)
  rows = (visited, *_coefficients(schedule, visited, first_step))

  def step(key, x_t, prediction, row, previous_x0):
    del key  # The step is deterministic.
    timestep, decay, gain, correction = row
    x0 = schedules.predict_x0(schedule, x_t, prediction.astype(jnp.float32), timestep)
    if clip_sample:
      x0 = jnp.clip(x0, -1.0, 1.0)
    return decay * x_t + gain * x0 + correction * (x0 - previous_x0), x0

  solver = Solver(step, rows, remember=True)
  return chain.run(
    key, predict, solver, schedule, x_init, visited, first_step=first_step, known=known
  )


def _coefficients(
  schedule: NoiseSchedule, steps: np.ndarray, first_step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns (num_steps,) factors of x_t, of x0, and of x0 minus the previous step's x0.

  For a step from lambda_s to lambda_t with h = lambda_t - lambda_s, they are sigma_t / sigma_s,
  a_t (1 - exp(-h)), and half of the latter times h / h_previous. The last step ends at the data,
  where h is infinite.
  """
  abar = np.asarray(schedule.alphas_cumprod, np.float64)[steps]
  # lambda of pure noise is infinite; diffusers uses this bound too.
  abar = np.maximum(abar, _LEAST_ABAR)
  signal, sigma = np.sqrt(abar), np.sqrt(1.0 - abar)
  signal_next, sigma_next = np.append(signal[1:], 1.0), np.append(sigma[1:], 0.0)
  decay = sigma_next / sigma
  gain = signal_next - signal * decay
  log_ratio = np.log(signal) - np.log(sigma)
  correction = np.zeros_like(gain)
  h = np.diff(log_ratio)  # One per step except the last, whose h is infinite.
  correction[1:-1] = 0.5 * gain[1:-1] * h[1:] / h[:-1]
  correction[first_step] = 0.0  # The first step has no previous x0, so it is first-order.
  return decay.astype(np.float32), gain.astype(np.float32), correction.astype(np.float32)
