"""PID: its distances by NumPy, and what one step does to an autoencoder of averages."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.protections.rounds import DATA, PICTURES, RADIUS, STEP, blocks, build, deltas
from udp_jax.data.batches import Batch
from udp_jax.errors import ConfigError
from udp_jax.ops.image import quantise_within
from udp_jax.protections import pid

CLEAN = Batch(PICTURES, np.arange(6), np.ones(6))
MOVED = np.clip(PICTURES / 255 + np.random.default_rng(1).uniform(-0.1, 0.1, PICTURES.shape), 0, 1)


@pytest.fixture(scope="module")
def uncertain(latent_model):
  """The autoencoder of averages, less certain of bright pictures."""

  def posterior(params, images):
    mean, _ = latent_model.posterior(params, images)
    return mean, 0.5 * mean - 2.0

  return latent_model._replace(posterior=posterior)


def moments(pictures):
  """Means and standard deviations of `uncertain`, by NumPy."""
  mean = 2.0 * pictures.reshape(len(pictures), 4, 2, 4, 2, 3).mean((2, 4)) - 1.0
  return mean, np.exp(0.5 * (0.5 * mean - 2.0))


def by_hand(kind):
  (m1, s1), (m2, s2) = moments(PICTURES / 255), moments(MOVED)
  means, stds = np.square(m2 - m1), np.square(s2 - s1)
  logs = np.square(np.log(s2**2) - np.log(s1**2))
  kl = np.log(s2 / s1) - 0.5 + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2)
  each = {"add-log": logs + 30.1 * means, "add": stds + means, "mean": means, "var": stds, "KL": kl}
  return each[kind].mean((1, 2, 3))


@pytest.mark.parametrize("kind", ["add-log", "add", "mean", "var", "KL"])
def test_distances_by_hand(uncertain, kind):
  distance = pid.posterior_distance(uncertain, kind, 30.1)
  found, _ = distance(None, jnp.asarray(MOVED, jnp.float32), CLEAN, None)
  np.testing.assert_allclose(found, by_hand(kind), rtol=2e-4, atol=1e-7)


def test_the_distance_of_draws_is_that_of_means_and_both_variances(uncertain):
  keys = jax.random.split(jax.random.key(0), 6)
  distance = pid.posterior_distance(uncertain, "latent_vector")
  each = jax.jit(
    jax.vmap(lambda keys: distance(None, jnp.asarray(MOVED, jnp.float32), CLEAN, keys)[0])
  )
  found = each(jax.vmap(lambda key: jax.random.split(key, 800), out_axes=1)(keys)).mean(0)
  (m1, s1), (m2, s2) = moments(PICTURES / 255), moments(MOVED)
  expected = (np.square(m2 - m1) + s1**2 + s2**2).mean((1, 2, 3))
  np.testing.assert_allclose(found, expected, rtol=0.03)


def test_a_step_goes_on_where_delta_is(latent_model):
  """Averages of 2x2 pixels move on to the side on which they are; nothing is drawn."""
  found = deltas(build("pid", latent_model), 1)
  moved = np.clip(found[0] + STEP * np.sign(blocks(found[0])), -RADIUS, RADIUS)
  np.testing.assert_allclose(found[1], moved, atol=1e-6)
  assert np.abs(found[0]).max() > 0.9 * RADIUS  # The start is drawn in the whole budget.


def test_the_saved_files_are_further_away_within_the_budget(uncertain):
  found = deltas(build("pid", uncertain), 8)
  distance = pid.posterior_distance(uncertain, "add-log", 30.1)

  def of(delta):
    saved = np.asarray(quantise_within(PICTURES, jnp.asarray(delta.reshape(PICTURES.shape)), 6))
    assert np.abs(saved.astype(int) - PICTURES).max() <= 6
    return distance(None, jnp.asarray(saved, jnp.float32) / 255, CLEAN, None)[0]

  assert (of(found[-1]) > 3 * of(found[0])).all()
  assert DATA.ids.reshape(-1).tolist() == CLEAN.ids.tolist()


def test_what_cannot_be_used(latent_model, gaussian_model):
  with pytest.raises(ConfigError, match="pid: unknown kind 'both'; known: add-log, add, mean"):
    build("pid", latent_model, kind="both")
  with pytest.raises(ConfigError, match="pid needs a latent diffusion model"):
    build("pid", gaussian_model)
  with pytest.raises(ConfigError, match="whose encoder has a mean and a variance"):
    build("pid", latent_model._replace(posterior=None))
