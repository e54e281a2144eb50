"""Samplers against the papers' formulas in float64, and on data whose best denoiser is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.ops import chain, samplers, schedules

MEAN, STD = 0.4, 0.25


def _gaussian_denoiser(schedule):
  """The exact prediction for data N(MEAN, STD^2), from the conditional mean of x0 given x_t."""
  abar_all = jnp.asarray(schedule.alphas_cumprod)

  def predict(x_t, timesteps):
    assert timesteps.shape == x_t.shape[:1]
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


def _point_denoiser(schedule, x0):
  """The exact noise when the data are the single point x0."""
  abar_all = jnp.asarray(schedule.alphas_cumprod)

  def predict(x_t, timesteps):
    abar = abar_all[timesteps][:, None]
    return (x_t - jnp.sqrt(abar) * x0) / jnp.sqrt(1 - abar)

  return predict


def test_a_learned_variance_lies_between_the_two_fixed_ones():
  """Nichol & Dhariwal 2021, equation 15, in float64; share 0 and 1 are the fixed variances."""
  schedule = schedules.linear(50, beta_end=0.2)
  x_t, prediction, noise = np.random.default_rng(0).normal(size=(3, 2, 5)).astype(np.float32)
  abar = np.asarray(schedule.alphas_cumprod, np.float64)
  beta = 1 - abar[30] / abar[29]
  low = np.log(beta * (1 - abar[29]) / (1 - abar[30]))

  def step(share, noise=noise, at=30, **options):
    given = (schedule, prediction, x_t, at, at - 1, noise)
    return samplers.ddpm_step(*given, options=samplers.DDPM(**options), share=share)

  mean = step(None, 0 * noise)
  share = np.random.default_rng(1).uniform(size=(2, 5)).astype(np.float32)
  spread = np.exp(0.5 * (share * np.log(beta) + (1 - share) * low))
  np.testing.assert_allclose(step(share), mean + spread * noise, rtol=1e-4, atol=1e-5)
  for fixed, end in (("fixed_small", 0.0), ("fixed_large", 1.0)):
    ends = jnp.full((2, 5), end)
    np.testing.assert_allclose(step(ends), step(None, variance=fixed), rtol=1e-4, atol=1e-5)
  # No noise in the step to the data, whose posterior has no variance.
  np.testing.assert_array_equal(step(share, at=0), step(None, at=0))


@pytest.mark.parametrize(
  "num_steps,spacing,offset,expected",
  [
    (5, "leading", 0, [16, 12, 8, 4, 0]),
    (5, "leading", 1, [17, 13, 9, 5, 1]),
    (5, "trailing", 0, [19, 15, 11, 7, 3]),
    (6, "trailing", 0, [19, 16, 12, 9, 6, 2]),
    (5, "linspace", 0, [19, 14, 10, 5, 0]),
    (20, "leading", 0, list(range(19, -1, -1))),
  ],
)
def test_spaced_timesteps(num_steps, spacing, offset, expected):
  got = samplers.spaced_timesteps(20, num_steps, spacing=spacing, steps_offset=offset)
  assert got.dtype == np.int32
  assert got.tolist() == expected


def test_spaced_timesteps_of_stable_diffusion():
  got = samplers.spaced_timesteps(1000, 50, steps_offset=1)
  assert got[0] == 981 and got[-1] == 1 and len(got) == 50


@pytest.mark.parametrize(
  "num_steps,options,message",
  [
    (0, {}, "num_steps"),
    (1001, {}, "num_steps"),
    (600, {}, "use 500 or 1000"),
    (10, {"spacing": "karras"}, "karras"),
    (1000, {"steps_offset": 1}, "steps_offset"),
  ],
)
def test_spaced_timesteps_rejects(num_steps, options, message):
  with pytest.raises(ValueError, match=message):
    samplers.spaced_timesteps(1000, num_steps, **options)


def _step_inputs():
  x_t, prediction, noise = np.random.default_rng(0).normal(size=(3, 2, 4, 4, 3))
  return tuple(v.astype(np.float32) for v in (x_t, prediction, noise))


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("clip", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("previous", [380, -20])
def test_ddim_step_matches_the_paper(eta, clip, previous):
  schedule = schedules.linear()
  x_t, prediction, noise = _step_inputs()
  abar = np.float64(schedule.alphas_cumprod[400])
  abar_prev = np.float64(schedule.alphas_cumprod[previous]) if previous >= 0 else 1.0
  x0 = (x_t - np.sqrt(1 - abar) * prediction) / np.sqrt(abar)
  if clip[0]:
    x0 = np.clip(x0, -1, 1)
  direction = (x_t - np.sqrt(abar) * x0) / np.sqrt(1 - abar) if clip[1] else prediction
  std = eta * np.sqrt((1 - abar_prev) / (1 - abar)) * np.sqrt(1 - abar / abar_prev)
  expected = np.sqrt(abar_prev) * x0 + np.sqrt(1 - abar_prev - std**2) * direction + std * noise
  got = samplers.ddim_step(
    schedule,
    prediction,
    x_t,
    400,
    previous,
    noise=noise,
    options=samplers.DDIM(eta, *clip),
  )
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_ddim_step_to_the_data_without_alpha_one():
  schedule = schedules.scaled_linear()
  x_t, prediction, _ = _step_inputs()
  abar, first = np.float64(schedule.alphas_cumprod[[1, 0]])
  x0 = (x_t - np.sqrt(1 - abar) * prediction) / np.sqrt(abar)
  options = samplers.DDIM(clip_sample=False, set_alpha_to_one=False)
  got = samplers.ddim_step(schedule, prediction, x_t, 1, -19, options=options)
  np.testing.assert_allclose(
    got, np.sqrt(first) * x0 + np.sqrt(1 - first) * prediction, rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("clip_sample", [False, True])
def test_ddpm_step_matches_the_paper(variance, clip_sample):
  betas = np.linspace(1e-4, 0.02, 1000)
  abar = np.cumprod(1 - betas)
  t = np.array([1, 700])
  beta, ab, ab_prev = (v[:, None, None, None] for v in (betas[t], abar[t], abar[t - 1]))
  x_t, prediction, noise = _step_inputs()
  if clip_sample:
    x0 = np.clip((x_t - np.sqrt(1 - ab) * prediction) / np.sqrt(ab), -1, 1)
    mean = np.sqrt(ab_prev) * beta / (1 - ab) * x0
    mean = mean + np.sqrt(1 - beta) * (1 - ab_prev) / (1 - ab) * x_t
  else:  # Algorithm 2 of the paper, which never forms x0.
    mean = (x_t - beta / np.sqrt(1 - ab) * prediction) / np.sqrt(1 - beta)
  spread = np.sqrt(beta if variance == "fixed_large" else (1 - ab_prev) / (1 - ab) * beta)
  got = samplers.ddpm_step(
    schedules.linear(),
    prediction,
    x_t,
    t,
    t - 1,
    noise,
    options=samplers.DDPM(variance, clip_sample),
  )
  np.testing.assert_allclose(got, mean + spread * noise, rtol=1e-3, atol=1e-4)


def test_the_last_ddpm_step_adds_no_noise():
  x_t, prediction, noise = _step_inputs()
  schedule = schedules.linear()
  for variance in chain.VARIANCES:
    steps = [
      samplers.ddpm_step(schedule, prediction, x_t, 0, -1, n, options=samplers.DDPM(variance))
      for n in (noise, 2 * noise)
    ]
    np.testing.assert_array_equal(*steps)


@pytest.mark.parametrize("prediction_type", schedules.PREDICTION_TYPES)
def test_ddim_with_eta_one_is_ddpm(prediction_type):
  schedule = schedules.linear(prediction_type=prediction_type)
  x_t, prediction, noise = _step_inputs()
  at = (schedule, prediction, x_t, jnp.array([500, 30]), jnp.array([480, 10]))
  np.testing.assert_allclose(
    samplers.ddim_step(*at, noise=noise, options=samplers.DDIM(1.0, clip_sample=False)),
    samplers.ddpm_step(*at, noise, options=samplers.DDPM(clip_sample=False)),
    rtol=1e-3,
    atol=1e-4,
  )


def test_steps_reject_bad_options():
  x_t, prediction, noise = _step_inputs()
  with pytest.raises(ValueError, match="noise"):
    samplers.ddim_step(schedules.linear(), prediction, x_t, 5, 4, options=samplers.DDIM(0.5))
  with pytest.raises(ValueError, match="learned"):
    samplers.ddpm_step(
      schedules.linear(), prediction, x_t, 5, 4, noise, options=samplers.DDPM("learned")
    )


COUNT = 40_000


def _assert_data_distribution(samples, tolerance=0.01):
  assert np.isfinite(samples).all()
  assert abs(float(samples.mean()) - MEAN) < tolerance
  assert abs(float(samples.std()) - STD) < tolerance


@pytest.mark.parametrize("prediction_type", schedules.PREDICTION_TYPES)
def test_ddim_reaches_the_data_distribution(prediction_type):
  schedule = schedules.linear(prediction_type=prediction_type)
  samples = samplers.ddim(
    jax.random.key(0),
    _gaussian_denoiser(schedule),
    schedule,
    (COUNT, 1),
    steps=samplers.Steps(250),
    options=samplers.DDIM(clip_sample=False),
  )
  _assert_data_distribution(samples)


@pytest.mark.parametrize("spacing", ["trailing", pytest.param("linspace", marks=pytest.mark.slow)])
def test_ddim_with_noise_and_other_spacings(spacing):
  schedule = schedules.linear()
  samples = samplers.ddim(
    jax.random.key(1),
    _gaussian_denoiser(schedule),
    schedule,
    (COUNT, 1),
    steps=samplers.Steps(250, spacing),
    options=samplers.DDIM(1.0, clip_sample=False),
  )
  # With eta = 1 a coarse chain loses a little variance: 250 steps leave about 2%.
  _assert_data_distribution(samples, tolerance=0.015)


@pytest.mark.slow
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_reaches_the_data_distribution(variance):
  schedule = schedules.linear()
  samples = jax.jit(
    lambda key: samplers.ddpm(
      key,
      _gaussian_denoiser(schedule),
      schedule,
      (COUNT, 1),
      options=samplers.DDPM(variance, clip_sample=False),
    )
  )(jax.random.key(2))
  _assert_data_distribution(samples)


@pytest.mark.parametrize("sampler", [samplers.ddim, samplers.ddpm])
@pytest.mark.parametrize("first_step", [0, 7])
def test_a_chain_may_start_in_the_middle(sampler, first_step):
  schedule = schedules.linear()
  x0 = jnp.array([[0.3, -0.9], [0.5, 0.1]])
  steps = samplers.spaced_timesteps(1000, 10)
  noise = jax.random.normal(jax.random.key(3), x0.shape)
  x_t = schedules.add_noise(schedule, x0, noise, steps[first_step])
  seen = []

  def predict(x, timesteps):
    jax.debug.callback(lambda t: seen.append(int(t[0])), timesteps, ordered=True)
    return _point_denoiser(schedule, x0)(x, timesteps)

  got = sampler(
    jax.random.key(4), predict, schedule, x_t, steps=samplers.Steps(10), first_step=first_step
  )
  np.testing.assert_allclose(got, x0, atol=1e-4)
  jax.effects_barrier()
  assert seen == steps[first_step:].tolist()


def test_noise_of_a_step_depends_on_its_index_only():
  # So an image-to-image chain meets the draws that the full chain would have met from there on.
  schedule = schedules.linear()
  predict = _gaussian_denoiser(schedule)
  x_t = jax.random.normal(jax.random.key(5), (3, 1))
  steps = samplers.spaced_timesteps(1000, 4)
  first = samplers.ddpm_step(
    schedule,
    predict(x_t, jnp.full((3,), steps[0])),
    x_t,
    steps[0],
    steps[1],
    jax.random.normal(jax.random.fold_in(jax.random.split(jax.random.key(6))[1], 0), x_t.shape),
  )
  four = samplers.Steps(4)
  full = samplers.ddpm(jax.random.key(6), predict, schedule, x_t, steps=four)
  rest = samplers.ddpm(jax.random.key(6), predict, schedule, first, steps=four, first_step=1)
  np.testing.assert_allclose(full, rest, rtol=1e-5, atol=1e-6)


def test_clipping_bounds_the_sample():
  schedule = schedules.linear(prediction_type="sample")
  predict = lambda x_t, timesteps: jnp.full_like(x_t, 5.0)
  for sampler, free in (
    (samplers.ddim, samplers.DDIM(clip_sample=False)),
    (samplers.ddpm, samplers.DDPM(clip_sample=False)),
  ):
    run = partial(sampler, jax.random.key(7), predict, schedule, (2, 3), steps=samplers.Steps(5))
    clipped, free = run(), run(options=free)
    np.testing.assert_allclose(clipped, 1.0, atol=1e-5)
    np.testing.assert_allclose(free, 5.0, atol=1e-4)


@pytest.mark.parametrize("sampler", [samplers.ddim, samplers.ddpm])
def test_starting_points_that_make_no_sense_are_refused(sampler):
  schedule = schedules.linear()
  with pytest.raises(ValueError, match="first_step"):
    sampler(jax.random.key(0), jnp.add, schedule, (2, 3), steps=samplers.Steps(5), first_step=5)
  with pytest.raises(ValueError, match="x_t"):
    sampler(jax.random.key(0), jnp.add, schedule, (2, 3), steps=samplers.Steps(5), first_step=2)


def test_a_half_precision_network_leaves_a_float32_chain():
  schedule = schedules.linear()
  predict = lambda x_t, timesteps: x_t.astype(jnp.bfloat16)
  for sampler in (samplers.ddim, samplers.ddpm):
    got = sampler(jax.random.key(8), predict, schedule, (2, 3), steps=samplers.Steps(3))
    assert got.dtype == jnp.float32
