"""DPM-Solver++(2M) on data whose probability-flow ODE has a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.ops import samplers, schedules

MEAN, STD = 0.4, 0.25


def _gaussian_denoiser(schedule):
  """The exact prediction for data N(MEAN, STD^2)."""
  abar_all = jnp.asarray(schedule.alphas_cumprod)

  def predict(x_t, timesteps):
    abar = abar_all[timesteps][:, None]
    gain = jnp.sqrt(abar) * STD**2 / (abar * STD**2 + 1 - abar)
    x0 = MEAN + gain * (x_t - jnp.sqrt(abar) * MEAN)
    noise = (x_t - jnp.sqrt(abar) * x0) / jnp.sqrt(1 - abar)
    return {
      "epsilon": noise,
      "sample": x0,
      "v_prediction": jnp.sqrt(abar) * noise - jnp.sqrt(1 - abar) * x0,
    }[schedule.prediction_type]

  return predict


def _flow(schedule, x_t, start, end):
  """The ODE's solution: the flow of Gaussians keeps the standardised value."""
  abar = np.float64(schedule.alphas_cumprod[[start, end]])
  signal, spread = np.sqrt(abar), np.sqrt(abar * STD**2 + 1 - abar)
  return signal[1] * MEAN + spread[1] * (x_t - signal[0] * MEAN) / spread[0]


def _error(schedule, sampler, x_t, num_steps):
  """The largest error of x at the chain's last timestep, before the step to the data.

  That step is of first order in every solver: it jumps to the network's x0.
  """
  skip = sampler is samplers.dpm_solver_pp_2m
  steps = samplers.spaced_timesteps(1000, num_steps, spacing="trailing", skip_last=skip)
  seen = []

  def predict(x, timesteps):
    jax.debug.callback(lambda value: seen.append(value), x, ordered=True)
    return _gaussian_denoiser(schedule)(x, timesteps)

  options = {"num_steps": num_steps, "spacing": "trailing", "clip_sample": False}
  options = samplers.arguments(sampler.__name__, options)
  sampler(jax.random.key(0), predict, schedule, x_t, **options)
  jax.effects_barrier()
  assert len(seen) == num_steps
  return np.abs(seen[-1] - _flow(schedule, x_t, steps[0], steps[-1])).max()


@pytest.mark.parametrize("kind", schedules.PREDICTION_TYPES)
def test_it_solves_the_ode_and_much_better_than_ddim(kind):
  schedule = schedules.scaled_linear(prediction_type=kind)
  x_t = np.linspace(-2.5, 2.5, 11, dtype=np.float32)[:, None]
  coarse, fine = (_error(schedule, samplers.dpm_solver_pp_2m, x_t, n) for n in (20, 40))
  # Of second order: twice the steps, a quarter of the error.
  assert fine < 0.35 * coarse, (coarse, fine)
  assert fine < 0.25 * _error(schedule, samplers.ddim, x_t, 40)


def test_a_step_of_each_order_by_hand():
  schedule = schedules.scaled_linear()
  steps = samplers.spaced_timesteps(1000, 3, spacing="linspace", skip_last=True)
  assert steps.tolist() == [999, 666, 333]
  abar = np.append(schedule.alphas_cumprod[steps].astype(np.float64), 1.0)
  signal, sigma = np.sqrt(abar), np.sqrt(1 - abar)
  x = np.random.default_rng(0).normal(size=(2, 3))
  predictions = np.random.default_rng(1).normal(size=(3, 2, 3)).astype(np.float32)

  def predict(x_t, timesteps):
    return jnp.asarray(predictions)[timesteps[0] // 333 - 1]

  end = samplers.dpm_solver_pp_2m(
    jax.random.key(0),
    predict,
    schedule,
    jnp.float32(x),
    steps=samplers.Steps(3),
    clip_sample=False,
  )
  x0 = (x - sigma[0] * predictions[2]) / signal[0]
  lam = np.log(signal[:3] / sigma[:3])
  h = np.diff(lam)
  x1 = sigma[1] / sigma[0] * x - signal[1] * np.expm1(-h[0]) * x0
  x0_1 = (x1 - sigma[1] * predictions[1]) / signal[1]
  # Equation of the second-order step with r = h_previous / h.
  direction = (1 + h[1] / (2 * h[0])) * x0_1 - h[1] / (2 * h[0]) * x0
  x2 = sigma[2] / sigma[1] * x1 - signal[2] * np.expm1(-h[1]) * direction
  expected = (x2 - sigma[2] * predictions[0]) / signal[2]
  np.testing.assert_allclose(end, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  "spacing,offset,expected",
  [
    ("linspace", 0, [19, 15, 11, 8, 4]),
    ("leading", 0, [15, 12, 9, 6, 3]),
    ("leading", 1, [16, 13, 10, 7, 4]),
    ("trailing", 0, [19, 15, 11, 7, 3]),
  ],
)
def test_the_last_timestep_is_left_out(spacing, offset, expected):
  options = {"spacing": spacing, "steps_offset": offset}
  got = samplers.spaced_timesteps(20, 5, **options, skip_last=True)
  assert got.tolist() == expected


def test_as_many_steps_as_timesteps_leave_none_to_skip():
  with pytest.raises(ValueError, match=r"\[1, 19\], got 20"):
    samplers.spaced_timesteps(20, 20, spacing="linspace", skip_last=True)
  with pytest.raises(ValueError, match="use 9 or 19 steps"):
    samplers.spaced_timesteps(20, 12, spacing="linspace", skip_last=True)


def test_a_chain_that_starts_in_the_middle_begins_with_first_order():
  schedule = schedules.scaled_linear()
  x0 = jnp.array([[0.3, -0.9], [0.5, 0.1]])
  steps = samplers.spaced_timesteps(1000, 10, spacing="linspace", skip_last=True)
  first = samplers.start_step(10, 0.5)
  noise = jax.random.normal(jax.random.key(3), x0.shape)
  x_t = schedules.add_noise(schedule, x0, noise, steps[first])
  abar = jnp.asarray(schedule.alphas_cumprod)
  seen = []

  def predict(x, timesteps):
    jax.debug.callback(lambda t: seen.append(int(t[0])), timesteps, ordered=True)
    at = abar[timesteps][:, None]
    return (x - jnp.sqrt(at) * x0) / jnp.sqrt(1 - at)

  got = samplers.dpm_solver_pp_2m(
    jax.random.key(4), predict, schedule, x_t, steps=samplers.Steps(10), first_step=first
  )
  np.testing.assert_allclose(got, x0, atol=1e-4)
  jax.effects_barrier()
  assert seen == steps[5:].tolist()


def test_clipping_bounds_the_sample():
  schedule = schedules.linear(prediction_type="sample")
  predict = lambda x_t, timesteps: jnp.full_like(x_t, 5.0)
  run = lambda **options: samplers.dpm_solver_pp_2m(
    jax.random.key(7), predict, schedule, (2, 3), steps=samplers.Steps(5), **options
  )
  np.testing.assert_allclose(run(), 1.0, atol=1e-5)
  np.testing.assert_allclose(run(clip_sample=False), 5.0, atol=1e-4)
