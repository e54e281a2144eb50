"""Samplers as `lax.scan`, with the numerics of diffusers' schedulers: DDPM, DDIM, DPM-Solver++(2M).

`predict(x_t, timesteps)` is the network with its parameters and conditioning bound. It takes x_t
(B, ...) float32 and timesteps (B,) int32 and returns a prediction of x_t's shape, whose meaning is
`schedule.prediction_type`. The whole chain is one `scan`, so it can run inside `jit`.

  >>> schedule = schedules.linear(prediction_type="sample")
  >>> predict = lambda x_t, timesteps: 0.9 * x_t
  >>> ddim(jax.random.key(0), predict, schedule, (2, 8, 8, 3), steps=Steps(10)).shape
  (2, 8, 8, 3)

To start in the middle (image to image), noise x0 to the timestep where the chain should begin:

  >>> x0, noise = jnp.zeros((2, 8, 8, 3)), jnp.ones((2, 8, 8, 3))
  >>> first = start_step(10, strength=0.6)
  >>> x_t = schedules.add_noise(schedule, x0, noise, spaced_timesteps(1000, 10)[first])
  >>> ddim(jax.random.key(0), predict, schedule, x_t, steps=Steps(10), first_step=first).shape
  (2, 8, 8, 3)

`known` keeps a region fixed (inpainting); `guidance.guided` makes `predict` for guided prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from udp_jax.ops import chain, schedules
from udp_jax.ops.chain import (
  SPACINGS,
  VARIANCES,
  Known,
  Predict,
  Solver,
  Steps,
  spaced_timesteps,
  start_step,
)
from udp_jax.ops.dpm_solver import dpm_solver_pp_2m
from udp_jax.ops.guidance import guided
from udp_jax.ops.schedules import NoiseSchedule

__all__ = [
  "DDIM",
  "DDPM",
  "SPACINGS",
  "VARIANCES",
  "Known",
  "Predict",
  "Steps",
  "arguments",
  "ddim",
  "ddim_step",
  "ddpm",
  "ddpm_step",
  "dpm_solver_pp_2m",
  "guided",
  "spaced_timesteps",
  "start_step",
]


class DDIM(NamedTuple):
  """Options of a DDIM step.

  Attributes:
    eta: share of fresh noise: 0 is deterministic, 1 has the variance of DDPM.
    clip_sample: whether to clip the predicted x0 to [-1, 1]; turn it off for latents.
    use_clipped_prediction: whether to recompute the predicted noise from the clipped x0.
    set_alpha_to_one: whether abar is 1 at the data; otherwise abar_0, as in Stable Diffusion.
  """

  eta: float = 0.0
  clip_sample: bool = True
  use_clipped_prediction: bool = False
  set_alpha_to_one: bool = True


class DDPM(NamedTuple):
  """Options of an ancestral step.

  Attributes:
    variance: variance of the noise: "fixed_small" (the posterior's) or "fixed_large" (beta).
    clip_sample: whether to clip the predicted x0 to [-1, 1]; turn it off for latents.
  """

  variance: str = "fixed_small"
  clip_sample: bool = True


def arguments(sampler: str, options: Mapping[str, Any]) -> dict[str, Any]:
  """Sorts flat options, as in configs and scheduler files, into a sampler's arguments.

  Args:
    sampler: "ddim", "ddpm" or "dpm_solver_pp_2m".
    options: fields of `Steps` and of the sampler's own options, by name; others are kept as is.

  Returns:
    Keyword arguments of the sampler's function.

  >>> arguments("ddim", {"num_steps": 20, "eta": 1.0, "first_step": 8})["options"].eta
  1.0
  """
  given = dict(options)

  def taken(record: Any) -> Any:
    return record(**{name: given.pop(name) for name in record._fields if name in given})

  found: dict[str, Any] = {}
  if not {*given}.isdisjoint(Steps._fields):
    found["steps"] = taken(Steps)
  own = {"ddim": DDIM, "ddpm": DDPM}.get(sampler)
  if own is not None:
    found["options"] = taken(own)
  return found | given


def _previous_alphas_cumprod(
  schedule: NoiseSchedule, previous: ArrayLike, ndim: int, final: float
) -> jax.Array:
  """Returns abar at `previous`, or `final` where `previous` is negative: the end of the chain."""
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
  noise: jax.Array | None = None,
  options: DDIM = DDIM(),
) -> jax.Array:
  """Takes one DDIM step (Song et al. 2021, equation 12).

  Args:
    schedule: the noise schedule.
    prediction: (B, ...), the network's output at (x_t, timesteps).
    x_t: (B, ...) noised images.
    timesteps: (B,) or scalar integers in [0, T).
    previous_timesteps: target of the step, like timesteps; negative means the data itself.
    noise: (B, ...) standard normal, required if eta > 0.
    options: eta, clipping and the end of the chain.

  Returns:
    (B, ...) float32, x at `previous_timesteps`.

  Raises:
    ValueError: eta > 0 but there is no noise.

  >>> schedule = schedules.linear(prediction_type="sample")
  >>> x_t, prediction = jnp.ones((1, 2)), jnp.full((1, 2), 0.5)
  >>> ddim_step(schedule, prediction, x_t, 500, -1).tolist()
  [[0.5, 0.5]]
  """
  eta = options.eta
  if eta > 0.0 and noise is None:
    raise ValueError("a DDIM step with eta > 0 needs noise")
  prediction = prediction.astype(jnp.float32)
  abar = schedules.gather(schedule.alphas_cumprod, timesteps, x_t.ndim)
  final = 1.0 if options.set_alpha_to_one else float(schedule.alphas_cumprod[0])
  abar_prev = _previous_alphas_cumprod(schedule, previous_timesteps, x_t.ndim, final)
  x0 = schedules.predict_x0(schedule, x_t, prediction, timesteps)
  noise_pred = schedules.predict_noise(schedule, x_t, prediction, timesteps)
  if options.clip_sample:
    x0 = jnp.clip(x0, -1.0, 1.0)
    if options.use_clipped_prediction:
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
  options: DDPM = DDPM(),
  share: jax.Array | None = None,
) -> jax.Array:
  """Takes one ancestral step (Ho et al. 2020, equations 6 and 7).

  Args:
    schedule: the noise schedule.
    prediction: (B, ...), the network's output at (x_t, timesteps).
    x_t: (B, ...) noised images.
    timesteps: (B,) or scalar integers in [0, T).
    previous_timesteps: target of the step, like timesteps; negative means the data itself.
    noise: (B, ...) standard normal, ignored by a step that ends at the data.
    options: variance and clipping.
    share: (B, ...), a learned variance, used instead of `options.variance`: the place of its
      logarithm between those of the posterior's variance (0) and beta (1) (Nichol & Dhariwal 2021,
      arXiv:2102.09672, equation 15).

  Returns:
    (B, ...) float32, x at `previous_timesteps`.

  Raises:
    ValueError: the variance is unknown.

  >>> schedule = schedules.linear(prediction_type="sample")
  >>> x_t, prediction = jnp.ones((1, 2)), jnp.full((1, 2), 0.5)
  >>> ddpm_step(schedule, prediction, x_t, 0, -1, jnp.ones((1, 2))).round(4).tolist()
  [[0.5, 0.5]]
  """
  variance = options.variance
  if variance not in VARIANCES:
    raise ValueError(f"variance {variance!r} is not one of {VARIANCES}")
  prediction = prediction.astype(jnp.float32)
  abar = schedules.gather(schedule.alphas_cumprod, timesteps, x_t.ndim)
  abar_prev = _previous_alphas_cumprod(schedule, previous_timesteps, x_t.ndim, 1.0)
  alpha = abar / abar_prev
  beta = 1.0 - alpha
  x0 = schedules.predict_x0(schedule, x_t, prediction, timesteps)
  if options.clip_sample:
    x0 = jnp.clip(x0, -1.0, 1.0)
  mean = jnp.sqrt(abar_prev) * beta / (1.0 - abar) * x0
  mean = mean + jnp.sqrt(alpha) * (1.0 - abar_prev) / (1.0 - abar) * x_t
  posterior = (1.0 - abar_prev) / (1.0 - abar) * beta
  if share is None:
    spread = jnp.sqrt(posterior if variance == "fixed_small" else beta)
  else:
    low = jnp.log(jnp.maximum(posterior, jnp.finfo(jnp.float32).tiny))
    spread = jnp.exp(0.5 * (share * jnp.log(beta) + (1.0 - share) * low))
  # abar_prev is exactly 1 at the end of the chain, where no noise is added.
  return mean + jnp.where(abar_prev < 1.0, spread, 0.0) * noise


def ddim(
  key: jax.Array,
  predict: Predict,
  schedule: NoiseSchedule,
  x_init: jax.Array | tuple[int, ...],
  *,
  steps: Steps = Steps(50),
  options: DDIM = DDIM(),
  first_step: int = 0,
  known: Known | None = None,
) -> jax.Array:
  """Samples with DDIM. Each step goes back T // num_steps timesteps, as in diffusers.

  Args:
    key: PRNG key for the initial noise (if x_init is a shape) and for eta > 0, or keys (B,), one
      per image.
    predict: (x_t, timesteps (B,)) -> the network's prediction.
    schedule: the noise schedule.
    x_init: a shape (B, ...), to start from pure noise, or x_t at the chain's first timestep.
    steps: the timesteps to visit, with "leading" as default spacing.
    options: eta, clipping and the end of the chain.
    first_step: index of the chain's first step; if above 0, x_init must be an array.
    known: the region to keep fixed, or None.

  Returns:
    (B, ...) float32 in the model's range.

  Raises:
    ValueError: options do not fit together; the message names them.

  >>> schedule = schedules.linear(prediction_type="sample")
  >>> predict = lambda x_t, timesteps: jnp.full_like(x_t, 0.5)  # Knows one picture.
  >>> ddim(jax.random.key(0), predict, schedule, (1, 2), steps=Steps(5)).tolist()
  [[0.5, 0.5]]
  """
  visited = chain.spaced(schedule, steps, "leading")
  previous = visited - schedule.num_steps // len(visited)

  def step(key, x_t, prediction, row, memory):
    timestep, prev = row
    noise = chain.normal(key, x_t.shape) if options.eta > 0.0 else None
    x_prev = ddim_step(schedule, prediction, x_t, timestep, prev, noise=noise, options=options)
    return x_prev, memory

  solver = Solver(step, (visited, previous))
  return chain.run(
    key, predict, solver, schedule, x_init, visited, first_step=first_step, known=known
  )


def ddpm(
  key: jax.Array,
  predict: Predict,
  schedule: NoiseSchedule,
  x_init: jax.Array | tuple[int, ...],
  *,
  steps: Steps = Steps(),
  options: DDPM = DDPM(),
  first_step: int = 0,
  known: Known | None = None,
) -> jax.Array:
  """Samples with the ancestral chain of DDPM.

  Args:
    key: one PRNG key for the batch, or keys (B,), one per image.
    predict: (x_t, timesteps (B,)) -> the network's prediction.
    schedule: the noise schedule.
    x_init: a shape (B, ...), to start from pure noise, or x_t at the chain's first timestep.
    steps: the timesteps to visit, with "leading" as default spacing.
    options: variance and clipping.
    first_step: index of the chain's first step; if above 0, x_init must be an array.
    known: the region to keep fixed, or None.

  Returns:
    (B, ...) float32 in the model's range.

  Raises:
    ValueError: options do not fit together; the message names them.

  >>> schedule = schedules.linear(prediction_type="sample")
  >>> predict = lambda x_t, timesteps: jnp.full_like(x_t, 0.5)  # Knows one picture.
  >>> x0 = ddpm(jax.random.key(0), predict, schedule, (1, 2), steps=Steps(5))
  >>> x0.round(4).tolist()
  [[0.5, 0.5]]
  """
  visited = chain.spaced(schedule, steps, "leading")
  previous = np.append(visited[1:], np.int32(-1))

  def step(key, x_t, prediction, row, memory):
    noise = chain.normal(key, x_t.shape)
    timestep, prev = row
    x_prev = ddpm_step(schedule, prediction, x_t, timestep, prev, noise, options=options)
    return x_prev, memory

  solver = Solver(step, (visited, previous))
  return chain.run(
    key, predict, solver, schedule, x_init, visited, first_step=first_step, known=known
  )
