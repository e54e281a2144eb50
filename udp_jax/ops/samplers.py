"""Sampling by `lax.scan`, with the numerics of diffusers' schedulers: DDPM, DDIM, DPM-Solver++(2M).

`predict(x_t, timesteps)` is the network with its parameters and conditioning bound: x_t (B, ...)
float32 and timesteps (B,) int32 in, a prediction of x_t's shape out, read by
`schedule.prediction_type`. The whole chain is one `scan`, so it can sit inside `jit`.

  images = from_model_range(samplers.ddim(key, predict, schedule, (16, 32, 32, 3), num_steps=50))

To start in the middle (image to image), noise x0 to the timestep where the chain shall begin:

  steps = samplers.spaced_timesteps(schedule.num_steps, 50)
  first = samplers.start_step(50, strength=0.6)
  x_t = schedules.add_noise(schedule, x0, noise, steps[first])
  samplers.ddim(key, predict, schedule, x_t, num_steps=50, first_step=first)

`known` keeps a region (inpainting), `guidance.guided` makes a `predict` of a conditional network.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from udp_jax.ops import chain, schedules
from udp_jax.ops.chain import SPACINGS, Known, Predict, spaced_timesteps, start_step
from udp_jax.ops.dpm_solver import dpm_solver_pp_2m
from udp_jax.ops.guidance import guided
from udp_jax.ops.schedules import NoiseSchedule

__all__ = [
  "SPACINGS",
  "VARIANCES",
  "Known",
  "Predict",
  "ddim",
  "ddim_step",
  "ddpm",
  "ddpm_step",
  "dpm_solver_pp_2m",
  "guided",
  "spaced_timesteps",
  "start_step",
]

VARIANCES = ("fixed_small", "fixed_large")


def _previous_alphas_cumprod(
  schedule: NoiseSchedule, previous: ArrayLike, ndim: int, final: float
) -> jax.Array:
  """The abar at `previous`, or `final` where `previous` is negative: the end of the chain."""
  previous = jnp.asarray(previous)
  abar = schedules.gather(schedule.alphas_cumprod, jnp.maximum(previous, 0), ndim)
  ended = (previous < 0).reshape(previous.shape + (1,) * (ndim - previous.ndim))
  return jnp.where(ended, jnp.float32(final), abar)


def ddim_step(
  schedule: NoiseSchedule,
  prediction: jax.Array,
  x_t: jax.Array,
  timesteps: ArrayLike,
  previous_timesteps: ArrayLike,
  *,
  eta: float = 0.0,
  noise: jax.Array | None = None,
  clip_sample: bool = True,
  use_clipped_prediction: bool = False,
  set_alpha_to_one: bool = True,
) -> jax.Array:
  """One DDIM step (Song et al. 2021, equation 12).

  Args:
    schedule: the noise schedule.
    prediction: (B, ...), the network's output at (x_t, timesteps).
    x_t: (B, ...).
    timesteps: (B,) or scalar.
    previous_timesteps: where the step goes, like timesteps; negative means to the data itself.
    eta: 0 is deterministic, 1 has the variance of DDPM.
    noise: (B, ...) standard normal, needed when eta > 0.
    clip_sample: clip the predicted x0 to [-1, 1].
    use_clipped_prediction: recompute the predicted noise from the clipped x0.
    set_alpha_to_one: the data has abar = 1; else abar_0 is used (Stable Diffusion's setting).

  Raises:
    ValueError: if eta > 0 comes without noise.
  """
  if eta > 0.0 and noise is None:
    raise ValueError("a DDIM step with eta > 0 needs noise")
  prediction = prediction.astype(jnp.float32)
  abar = schedules.gather(schedule.alphas_cumprod, timesteps, x_t.ndim)
  final = 1.0 if set_alpha_to_one else float(schedule.alphas_cumprod[0])
  abar_prev = _previous_alphas_cumprod(schedule, previous_timesteps, x_t.ndim, final)
  x0 = schedules.predict_x0(schedule, x_t, prediction, timesteps)
  noise_pred = schedules.predict_noise(schedule, x_t, prediction, timesteps)
  if clip_sample:
    x0 = jnp.clip(x0, -1.0, 1.0)
    if use_clipped_prediction:
      noise_pred = (x_t - jnp.sqrt(abar) * x0) / jnp.sqrt(1.0 - abar)
  variance = eta**2 * (1.0 - abar_prev) / (1.0 - abar) * (1.0 - abar / abar_prev)
  direction = jnp.sqrt(jnp.maximum(1.0 - abar_prev - variance, 0.0)) * noise_pred
  x_prev = jnp.sqrt(abar_prev) * x0 + direction
  if eta > 0.0 and noise is not None:
    x_prev = x_prev + jnp.sqrt(jnp.maximum(variance, 0.0)) * noise
  return x_prev


def ddpm_step(
  schedule: NoiseSchedule,
  prediction: jax.Array,
  x_t: jax.Array,
  timesteps: ArrayLike,
  previous_timesteps: ArrayLike,
  noise: jax.Array,
  *,
  variance: str = "fixed_small",
  clip_sample: bool = True,
) -> jax.Array:
  """One ancestral step (Ho et al. 2020, equations 6 and 7).

  Args:
    schedule: the noise schedule.
    prediction: (B, ...), the network's output at (x_t, timesteps).
    x_t: (B, ...).
    timesteps: (B,) or scalar.
    previous_timesteps: where the step goes, like timesteps; negative means to the data itself.
    noise: (B, ...) standard normal; not used by a step that ends at the data.
    variance: "fixed_small" (of the posterior) or "fixed_large" (beta).
    clip_sample: clip the predicted x0 to [-1, 1].

  Raises:
    ValueError: for an unknown variance.
  """
  if variance not in VARIANCES:
    raise ValueError(f"variance {variance!r} is not one of {VARIANCES}")
  prediction = prediction.astype(jnp.float32)
  abar = schedules.gather(schedule.alphas_cumprod, timesteps, x_t.ndim)
  abar_prev = _previous_alphas_cumprod(schedule, previous_timesteps, x_t.ndim, 1.0)
  alpha = abar / abar_prev
  beta = 1.0 - alpha
  x0 = schedules.predict_x0(schedule, x_t, prediction, timesteps)
  if clip_sample:
    x0 = jnp.clip(x0, -1.0, 1.0)
  mean = jnp.sqrt(abar_prev) * beta / (1.0 - abar) * x0
  mean = mean + jnp.sqrt(alpha) * (1.0 - abar_prev) / (1.0 - abar) * x_t
  posterior = (1.0 - abar_prev) / (1.0 - abar) * beta
  spread = jnp.sqrt(posterior if variance == "fixed_small" else beta)
  # abar_prev is exactly 1 at the end of the chain, where no noise is added.
  return mean + jnp.where(abar_prev < 1.0, spread, 0.0) * noise


def ddim(
  key: jax.Array,
  predict: Predict,
  schedule: NoiseSchedule,
  x_init: jax.Array | tuple[int, ...],
  *,
  num_steps: int = 50,
  eta: float = 0.0,
  clip_sample: bool = True,
  use_clipped_prediction: bool = False,
  set_alpha_to_one: bool = True,
  spacing: str = "leading",
  steps_offset: int = 0,
  first_step: int = 0,
  known: Known | None = None,
) -> jax.Array:
  """Samples with DDIM. Each step goes T // num_steps timesteps back, as in diffusers.

  Args:
    key: for the initial noise (when x_init is a shape) and for eta > 0; or keys, see `chain.run`.
    predict: the network, see the module's docstring.
    schedule: the noise schedule.
    x_init: the shape (B, ...) to sample from pure noise, or x_t at the chain's first timestep.
    num_steps: number of steps of the whole chain.
    eta: see `ddim_step`, as the next three.
    clip_sample: clip the predicted x0 to [-1, 1]; turn off for latents.
    use_clipped_prediction: recompute the predicted noise from the clipped x0.
    set_alpha_to_one: the last step ends at abar = 1.
    spacing: see `spaced_timesteps`.
    steps_offset: see `spaced_timesteps`.
    first_step: index in `spaced_timesteps` where the chain starts; needs an array x_init.
    known: a region to keep.

  Returns:
    (B, ...) float32 on the model's range.

  Raises:
    ValueError: for options that do not fit together; the message names them.
  """
  steps = spaced_timesteps(
    schedule.num_steps, num_steps, spacing=spacing, steps_offset=steps_offset
  )
  previous = steps - schedule.num_steps // num_steps

  def step(key, x_t, prediction, row, memory):
    timestep, prev = row
    noise = chain.normal(key, x_t.shape) if eta > 0.0 else None
    x_prev = ddim_step(
      schedule,
      prediction,
      x_t,
      timestep,
      prev,
      eta=eta,
      noise=noise,
      clip_sample=clip_sample,
      use_clipped_prediction=use_clipped_prediction,
      set_alpha_to_one=set_alpha_to_one,
    )
    return x_prev, memory

  rows = steps, previous
  return chain.run(
    key, predict, step, schedule, x_init, steps, rows=rows, first_step=first_step, known=known
  )


def ddpm(
  key: jax.Array,
  predict: Predict,
  schedule: NoiseSchedule,
  x_init: jax.Array | tuple[int, ...],
  *,
  num_steps: int | None = None,
  variance: str = "fixed_small",
  clip_sample: bool = True,
  spacing: str = "leading",
  steps_offset: int = 0,
  first_step: int = 0,
  known: Known | None = None,
) -> jax.Array:
  """Samples with the ancestral chain of DDPM.

  Args:
    key: a PRNG key, or keys (B,), see `chain.run`.
    predict: the network, see the module's docstring.
    schedule: the noise schedule.
    x_init: the shape (B, ...) to sample from pure noise, or x_t at the chain's first timestep.
    num_steps: number of steps of the whole chain; None is all T of them.
    variance: "fixed_small" or "fixed_large", see `ddpm_step`.
    clip_sample: clip the predicted x0 to [-1, 1]; turn off for latents.
    spacing: see `spaced_timesteps`.
    steps_offset: see `spaced_timesteps`.
    first_step: index in `spaced_timesteps` where the chain starts; needs an array x_init.
    known: a region to keep.

  Returns:
    (B, ...) float32 on the model's range.

  Raises:
    ValueError: for options that do not fit together; the message names them.
  """
  steps = spaced_timesteps(
    schedule.num_steps,
    schedule.num_steps if num_steps is None else num_steps,
    spacing=spacing,
    steps_offset=steps_offset,
  )
  previous = np.append(steps[1:], np.int32(-1))

  def step(key, x_t, prediction, row, memory):
    noise = chain.normal(key, x_t.shape)
    timestep, prev = row
    x_prev = ddpm_step(
      schedule, prediction, x_t, timestep, prev, noise, variance=variance, clip_sample=clip_sample
    )
    return x_prev, memory

  rows = steps, previous
  return chain.run(
    key, predict, step, schedule, x_init, steps, rows=rows, first_step=first_step, known=known
  )
