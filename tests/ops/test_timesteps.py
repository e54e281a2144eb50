"""Timestep distributions: closed forms, and draws tested by chi-square with fixed seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from udp_jax.ops import schedules, timesteps


def _chi_square_p(draws, probs, num_bins=40):
  """P-value of the draws under probs, in bins of neighbouring timesteps of similar mass."""
  probs = np.asarray(probs, np.float64)
  bins = np.minimum((np.cumsum(probs) - probs / 2) * num_bins, num_bins - 1).astype(int)
  expected = np.bincount(bins, weights=probs, minlength=num_bins)
  observed = np.bincount(bins[np.asarray(draws)], minlength=num_bins)
  kept = expected > 0
  assert observed[~kept].sum() == 0
  return scipy.stats.chisquare(
    observed[kept], expected[kept] / expected.sum() * observed.sum()
  ).pvalue


def test_uniform():
  np.testing.assert_array_equal(timesteps.uniform(8), np.full(8, 0.125, np.float32))
  with pytest.raises(ValueError, match="num_steps"):
    timesteps.uniform(0)


@pytest.mark.parametrize("a,b", [(0.0, 0.0), (0.5, 0.0), (0.5, -0.5), (0.5, 0.5), (2.0, 1.0)])
def test_schedule_power_matches_definition(a, b):
  schedule = schedules.linear()
  abar = schedule.alphas_cumprod.astype(np.float64)
  weights = abar**a * (1 - abar) ** b
  got = timesteps.schedule_power(schedule, a, b)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, weights / weights.sum(), rtol=1e-5)


def test_schedule_power_survives_extreme_powers():
  got = timesteps.schedule_power(schedules.linear(), 5000.0, 0.0)
  assert np.isfinite(got).all()
  np.testing.assert_allclose(got.sum(), 1.0, rtol=1e-5)
  assert got.argmax() == 0
  with pytest.raises(ValueError, match="finite"):
    timesteps.schedule_power(schedules.linear(), np.inf, 0.0)


@pytest.mark.parametrize(
  "vector,message",
  [
    ([], "non-empty"),
    ([[0.5, 0.5]], "vector"),
    ([0.5, np.nan], "finite"),
    ([1.5, -0.5], "negative"),
    ([0.5, 0.4], "add up"),
    ([0.0, 0.0], "add up"),
  ],
)
def test_from_probabilities_rejects(vector, message):
  with pytest.raises(ValueError, match=message):
    timesteps.from_probabilities(vector)


def test_from_probabilities_scales_rounding_away():
  got = timesteps.from_probabilities([0.25, 0.7502])
  np.testing.assert_allclose(got.astype(np.float64).sum(), 1.0, rtol=1e-7)
  np.testing.assert_allclose(got[1] / got[0], 0.7502 / 0.25, rtol=1e-6)


@pytest.mark.parametrize("a,b", [(0.0, 0.0), (0.5, 0.0), (0.5, -0.5), (0.5, 0.5)])
def test_draws_follow_the_distribution(a, b):
  probs = timesteps.schedule_power(schedules.linear(), a, b)
  draws = timesteps.sample(jax.random.key(3), probs, (200_000,))
  assert draws.dtype == jnp.int32
  assert _chi_square_p(draws, probs) > 0.01
  # The test has power: a distribution one tenth of a power away is rejected.
  other = timesteps.schedule_power(schedules.linear(), a + 0.1, b)
  assert _chi_square_p(draws, other) < 1e-4


def test_vmap_over_keys_draws_the_distribution_and_equals_single_draws():
  probs = timesteps.schedule_power(schedules.linear(), 0.5, 0.0)
  keys = jax.random.split(jax.random.key(4), 20_000)
  draws = jax.jit(jax.vmap(lambda key: timesteps.sample(key, probs)))(keys)
  assert draws.shape == (20_000,)
  assert _chi_square_p(draws, probs) > 0.01
  for i in (0, 77):
    assert int(timesteps.sample(keys[i], probs)) == int(draws[i])


@pytest.mark.parametrize("support", [[0], [999], [0, 999], [400, 401], list(range(0, 1000, 7))])
def test_never_draws_a_timestep_of_probability_zero(support):
  probs = np.zeros(1000, np.float32)
  probs[support] = np.random.default_rng(0).uniform(1e-4, 1.0, len(support))
  probs /= probs.sum()
  draws = np.asarray(timesteps.sample(jax.random.key(5), probs, (100_000,)))
  assert set(np.unique(draws)) <= set(support)


@pytest.mark.parametrize("u", [0.0, 1.0 - 2.0**-24, 1.0])
def test_extreme_uniforms_stay_inside_the_support(monkeypatch, u):
  # Thirds do not add up to one in float32, and the ends have probability zero.
  probs = np.array([0.0, 1 / 3, 0.0, 1 / 3, 1 / 3, 0.0], np.float32)
  monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.full(shape, u, dtype))
  draw = int(timesteps.sample(jax.random.key(0), probs))
  assert draw == (1 if u == 0.0 else 4)


def test_rounding_of_the_prefix_sum_opens_no_gap(monkeypatch):
  # A parallel prefix sum may end higher over a tail of zeros than before it.
  wobbly = jnp.array([0.25, 0.5, 0.4999, 0.9999, 1.0, 0.99995], jnp.float32)
  probs = np.array([0.25, 0.25, 0.0, 0.5, 0.0, 0.0], np.float32)
  monkeypatch.setattr(jnp, "cumsum", lambda _: wobbly)
  draws = timesteps.sample(jax.random.key(7), probs, (200_000,))
  assert set(np.unique(draws)) == {0, 1, 3}


def test_probabilities_may_be_traced():
  sampler = jax.jit(lambda key, probs: timesteps.sample(key, probs, (50,)))
  assert set(np.unique(sampler(jax.random.key(6), jnp.array([0.0, 1.0, 0.0])))) == {1}
  assert set(np.unique(sampler(jax.random.key(6), jnp.array([0.0, 0.0, 1.0])))) == {2}


def test_measured_is_piecewise_linear_and_never_negative():
  probs = timesteps.measured([1.5, 3.5, 7.0], [2.0, 4.0, -2.0], 10)
  # Constant to the first point, linear between, 0 where the interpolation is negative.
  raw = np.array([2, 2, 2.5, 3.5, 22 / 7, 10 / 7, 0, 0, 0, 0])
  raw[4:7] = 4 - 6 / 3.5 * (np.arange(4, 7) - 3.5)
  np.testing.assert_allclose(probs, np.maximum(raw, 0) / np.maximum(raw, 0).sum(), rtol=1e-6)
  assert probs.dtype == np.float32
  for grid, values, said in (
    ([0, 1], [1.0], "equal vectors"),
    ([1, 0], [1.0, 1.0], "must increase"),
    ([0, 10], [1.0, 1.0], r"within \[0, 9\]"),
    ([0, 1], [1.0, np.nan], "finite"),
    ([0, 1], [-1.0, 0.0], "no timestep is useful"),
  ):
    with pytest.raises(ValueError, match=said):
      timesteps.measured(grid, values, 10)
