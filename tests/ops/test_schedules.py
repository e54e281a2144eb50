"""Schedules against closed forms, and the algebra between x0, noise and predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.ops import schedules, timesteps

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def _abar_by_loop(betas):
  out, product = [], 1.0
  for beta in betas:
    product *= 1.0 - beta
    out.append(product)
  return np.array(out)


def test_linear_matches_definition():
  betas = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
  schedule = schedules.linear()
  assert schedule.alphas_cumprod.dtype == np.float32
  assert schedule.num_steps == 1000
  np.testing.assert_allclose(schedule.alphas_cumprod, _abar_by_loop(betas), rtol=1e-6)
  # The value every DDPM implementation ends at.
  np.testing.assert_allclose(schedule.alphas_cumprod[-1], 4.0358e-5, rtol=1e-4)


def test_scaled_linear_matches_definition():
  low, high = 0.00085**0.5, 0.012**0.5
  betas = [(low + (high - low) * i / 999) ** 2 for i in range(1000)]
  got = schedules.scaled_linear().alphas_cumprod
  np.testing.assert_allclose(got, _abar_by_loop(betas), rtol=1e-6)
  # Stable Diffusion's published end value.
  np.testing.assert_allclose(got[-1], 0.0047, rtol=0.02)


def test_cosine_follows_squared_cosine_until_the_cap():
  got = schedules.cosine(100).alphas_cumprod
  u = np.arange(1, 100) / 100
  f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
  f0 = np.cos(0.008 / 1.008 * np.pi / 2) ** 2
  np.testing.assert_allclose(got[:-1], f / f0, rtol=1e-5)
  np.testing.assert_allclose(got[-1] / got[-2], 0.001, rtol=1e-4)


@pytest.mark.parametrize(
  "betas", [[], [[0.1]], [0.0, 0.1], [0.1, 1.0], [0.1, np.nan], [-0.1], [1e-9], [0.999] * 20]
)
def test_from_betas_rejects_bad_betas(betas):
  with pytest.raises(ValueError, match="beta"):
    schedules.from_betas(betas)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_zero_terminal_snr(kind):
  plain = schedules.scaled_linear(prediction_type=kind)
  schedule = schedules.zero_snr(plain)
  abar, before = schedule.alphas_cumprod, plain.alphas_cumprod
  assert abar[-1] == 0.0 and np.all(np.diff(abar) < 0) and abar.dtype == np.float32
  np.testing.assert_allclose(abar[0], before[0], rtol=1e-6)
  # In between sqrt(abar) is an affine function of what it was.
  slope = np.diff(np.sqrt(abar.astype(np.float64))) / np.diff(np.sqrt(before.astype(np.float64)))
  np.testing.assert_allclose(slope, slope[0], rtol=1e-3)
  # Everything that the network's output implies is finite where nothing is left of x0.
  x0, noise = (np.random.default_rng(i).normal(size=(2, 3)).astype(np.float32) for i in range(2))
  last = jnp.full((2,), 999)
  x_t = schedules.add_noise(schedule, x0, noise, last)
  np.testing.assert_array_equal(x_t, noise)
  target = schedules.training_target(schedule, x0, noise, last)
  np.testing.assert_allclose(schedules.predict_x0(schedule, x_t, target, last), x0, atol=1e-6)
  np.testing.assert_allclose(schedules.predict_noise(schedule, x_t, target, last), noise, atol=1e-6)
  for a, b in ((2.0, 0.0), (0.0, 0.0), (-0.01, 1.0)):
    probs = timesteps.schedule_power(schedule, a, b)
    assert np.isfinite(probs).all() and probs.sum() == pytest.approx(1.0, abs=1e-4)


def test_zero_terminal_snr_needs_a_prediction_that_tells_x0():
  with pytest.raises(ValueError, match="needs v_prediction or sample, not epsilon"):
    schedules.zero_snr(schedules.linear(10))
  betas = [0.1, 0.5, 1.0]
  assert schedules.from_betas(betas, prediction_type="sample").alphas_cumprod[-1] == 0.0
  with pytest.raises(ValueError, match="strictly between"):
    schedules.from_betas(betas)


def test_unknown_prediction_type_is_refused():
  with pytest.raises(ValueError, match="noise_level"):
    schedules.linear(10, prediction_type="noise_level")
  x = jnp.zeros((1, 2))
  broken = schedules.linear(10)._replace(prediction_type="score")
  for function in (schedules.predict_x0, schedules.predict_noise, schedules.training_target):
    with pytest.raises(ValueError, match="score"):
      function(broken, x, x, jnp.zeros((1,), jnp.int32))


def test_add_noise_uses_each_examples_timestep():
  schedule = schedules.linear()
  x0, noise = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 2)).astype(np.float32)
  timesteps = np.array([0, 500, 999])
  got = jax.jit(lambda *a: schedules.add_noise(schedule, *a))(x0, noise, timesteps)
  for i, t in enumerate(timesteps):
    abar = np.float64(schedule.alphas_cumprod[t])
    np.testing.assert_allclose(
      got[i], abar**0.5 * x0[i] + (1 - abar) ** 0.5 * noise[i], rtol=1e-5, atol=1e-6
    )
  np.testing.assert_array_equal(
    schedules.add_noise(schedule, x0, noise, 500)[1],
    schedules.add_noise(schedule, x0, noise, timesteps)[1],
  )


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_perfect_prediction_recovers_x0_and_noise(prediction_type):
  schedule = schedules.linear(prediction_type=prediction_type)
  x0, noise = np.random.default_rng(1).normal(size=(2, 3, 4, 4, 2)).astype(np.float32)
  timesteps = jnp.array([20, 300, 600])
  x_t = schedules.add_noise(schedule, x0, noise, timesteps)
  target = schedules.training_target(schedule, x0, noise, timesteps)
  np.testing.assert_allclose(
    schedules.predict_x0(schedule, x_t, target, timesteps), x0, rtol=1e-3, atol=1e-4
  )
  np.testing.assert_allclose(
    schedules.predict_noise(schedule, x_t, target, timesteps), noise, rtol=1e-3, atol=1e-4
  )


def test_v_target_is_the_derivative_by_angle():
  # Salimans & Ho: with sqrt(abar) = cos(phi), v = d x_t / d phi.
  schedule = schedules.linear(prediction_type="v_prediction")
  phi = np.arccos(np.sqrt(np.float64(schedule.alphas_cumprod[400])))
  x0, noise = 0.7, -1.3
  step = 1e-5
  up, down = (np.cos(phi + s) * x0 + np.sin(phi + s) * noise for s in (step, -step))
  got = schedules.training_target(
    schedule, jnp.full((1, 1), x0), jnp.full((1, 1), noise), jnp.array([400])
  )
  np.testing.assert_allclose(got[0, 0], (up - down) / (2 * step), rtol=1e-5)


def test_snr():
  schedule = schedules.linear()
  abar = schedule.alphas_cumprod.astype(np.float64)
  np.testing.assert_allclose(schedules.snr(schedule), abar / (1 - abar), rtol=1e-3)
  np.testing.assert_allclose(
    schedules.snr(schedule, jnp.array([[3], [700]])), (abar / (1 - abar))[[[3], [700]]], rtol=1e-3
  )
