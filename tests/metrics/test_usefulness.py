"""Usefulness of timesteps against a closed form."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.metrics import usefulness
from udp_jax.ops import schedules, timesteps

SCHEDULE = schedules.linear(6, beta_start=0.1, beta_end=0.5)


@pytest.fixture
def linear_model(gaussian_model):
  """Predicts sigma_t x_t: for it every expectation below is known."""

  def apply(params, x_t, t, cond=None, keys=None):
    return jnp.sqrt(1 - schedules.gather(SCHEDULE.alphas_cumprod, t, x_t.ndim)) * x_t

  return gaussian_model._replace(apply=apply, schedule=SCHEDULE)


def expected(level):
  """u(t): the loss is mean (s^2 noise - sigma s x0)^2, with s^2 = abar and sigma^2 = 1 - abar."""
  x0 = 2 * level / 255 - 1
  abar = np.asarray(SCHEDULE.alphas_cumprod, np.float64)
  s, sigma = np.sqrt(abar), np.sqrt(1 - abar)
  # d x0 / d image = 2; the mean's 1/n cancels against the sum over the values.
  uniform = np.mean(2 * 2 * (sigma * s) ** 2 * x0)
  signs = np.array([math.erf(b * x0 / (math.sqrt(2) * a)) for a, b in zip(s, sigma)])
  return signs * uniform


def test_the_closed_form(linear_model):
  images = np.full((16, 8, 8, 3), 180, np.uint8)
  found = usefulness.measure(linear_model, {}, images, num_strata=6, draws=8, batch_size=5)
  mean, error = found.values.mean(0), found.values.std(0, ddof=1) / 4
  assert (np.abs(mean - expected(180)) < 4 * error).all()
  np.testing.assert_allclose(mean, expected(180), rtol=0.1)
  uniform = found.ascent(timesteps.uniform(6))
  np.testing.assert_allclose(uniform, found.values.mean(1), rtol=1e-6)
  assert found.centres.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_noise_is_not_useful_for_its_own_gradient(linear_model):
  """A picture at the model's mean has no gradient; signs and gradients of one draw would agree."""
  images = np.tile(np.array([127, 128], np.uint8).reshape(1, 1, 2, 1), (32, 8, 4, 3))
  found = usefulness.measure(linear_model, {}, images, num_strata=6, draws=2)
  mean, error = usefulness.mean_and_error(found.values.mean(1))
  s2 = np.asarray(SCHEDULE.alphas_cumprod, np.float64)
  # E |gradient| over values, of which a draw of its own has 1 / (draws * strata).
  alone = np.mean(4 * np.sqrt(1 - s2) * np.sqrt(s2) * s2 * math.sqrt(2 / math.pi)) / 12
  assert abs(mean) < 4 * error < 0.5 * alone


def test_draws_belong_to_pictures_and_strata_cover_all_timesteps(linear_model):
  generator = np.random.default_rng(0)
  images = generator.integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
  one = usefulness.measure(linear_model, {}, images, num_strata=4, batch_size=5)
  two = usefulness.measure(linear_model, {}, images, num_strata=4, batch_size=2)
  np.testing.assert_allclose(one.values, two.values, rtol=1e-5)
  assert one.edges.tolist() == [0, 2, 3, 4, 6] and one.values.shape == (5, 4)
  assert one.ascent([0, 0, 0, 1, 0, 0]).tolist() == one.values[:, 2].tolist()
  other = usefulness.measure(linear_model, {}, images, num_strata=4, seed=1)
  assert np.abs(other.values - one.values).max() > 1e-3
  with pytest.raises(ValueError, match="at least 2 draws"):
    usefulness.measure(linear_model, {}, images, draws=1)


def test_through_the_encoder(latent_model):
  """Gradients reach the pixels of a latent model."""
  images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
  params = latent_model.init(jax.random.key(0))
  found = usefulness.measure(latent_model, params, images, num_strata=5)
  assert found.values.shape == (3, 5) and np.isfinite(found.values).all()
  assert found.values.mean() > 0
