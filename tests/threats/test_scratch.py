"""Training from scratch: it learns, it resumes, it samples, and it leaves its inputs alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.docstrings import check_constructor
from udp_jax import threats
from udp_jax.data import batches
from udp_jax.errors import ConfigError
from udp_jax.metrics import denoising
from udp_jax.threats.scratch import scratch

KEY = jax.random.key(4)
STEPS = 40
OPTIONS = {"train_steps": 2 * STEPS, "learning_rate": 0.05, "warmup_steps": 5, "flip": False}
OPTIONS |= {"decay": "cosine", "ema_decay": 0.9, "sample_steps": 12, "eta": 0.5}


@pytest.fixture(scope="module")
def threat(gaussian_model):
  return threats.build("scratch", gaussian_model, OPTIONS)


@pytest.fixture(scope="module")
def data(pictures):
  return jax.tree.map(jnp.asarray, batches.make_batches(pictures, 8))


@pytest.fixture(scope="module")
def trained(threat, data):
  """(losses, state) of 2 x `STEPS` steps in two calls."""
  state, first = threat.update(KEY, threat.init(KEY, None), data, STEPS)
  state, second = threat.update(KEY, state, data, STEPS)
  return np.concatenate([first, second]), state


def test_it_learns(threat, trained, gaussian_model, pictures):
  losses, state = trained
  assert losses.shape == (2 * STEPS,) and np.isfinite(losses).all()
  assert state.step == 2 * STEPS and threat.train_steps == 2 * STEPS
  loss = denoising.denoising_loss(gaussian_model, draws=4)
  before, after = loss(gaussian_model.init(KEY), pictures), loss(threat.final(state), pictures)
  # No model of this class can do better than the pictures' own mean and spread.
  x0 = pictures / 127.5 - 1
  spread = jnp.float32(np.log(np.sqrt(np.square(x0 - x0.mean(0)).mean((0, 1, 2)))))
  best = loss({"mean": jnp.float32(x0.mean(0)), "log_spread": spread}, pictures)
  assert best - 0.01 < after < best + 0.2 * (before - best)


def test_sampling_uses_the_average(threat, trained):
  state = trained[1]
  final = threat.final(state)
  assert final is state.ema_params
  assert np.any(final["mean"] != state.params["mean"])


def test_the_learning_rate_warms_up_and_decays(threat, trained, data):
  # The first step is taken at a rate of zero, and so are those after the end.
  start = threat.init(KEY, None)
  before = np.array(start.params["mean"])
  state, _ = threat.update(KEY, start, data, 1)
  np.testing.assert_array_equal(state.params["mean"], before)
  finished = jax.tree.map(jnp.copy, trained[1])
  state, _ = threat.update(KEY, finished, data, 1)
  np.testing.assert_allclose(state.params["mean"], trained[1].params["mean"], atol=1e-6)


def test_a_run_that_is_taken_up_again_ends_the_same(threat, data, trained):
  state, first = threat.update(KEY, threat.init(KEY, None), data, STEPS)
  stored = jax.tree.map(np.array, state)
  del state
  resumed, second = threat.update(KEY, jax.tree.map(jnp.asarray, stored), data, STEPS)
  jax.tree.map(np.testing.assert_array_equal, resumed, trained[1])
  np.testing.assert_array_equal(np.concatenate([first, second]), trained[0])


def test_samples(threat, trained, pictures):
  final = threat.final(trained[1])
  key = jax.random.key(7)
  images = threat.sample(key, final, 6)
  assert images.shape == (6, 8, 8, 3) and images.dtype == jnp.float32
  assert images.min() >= 0 and images.max() <= 1
  np.testing.assert_array_equal(threat.sample(key, final, 6), images)
  other = threat.sample(jax.random.key(8), final, 6)
  assert np.any(other != images) and len(np.unique(images.reshape(6, -1), axis=0)) == 6
  # They look like the pictures: smooth copies of one, with a little noise.
  error = np.abs(images.mean(0) - pictures.mean(0) / 255).mean()
  assert error < 0.08


def test_the_callers_parameters_survive_donation(threat, gaussian_model, data):
  params = gaussian_model.init(jax.random.key(1))
  kept = jax.tree.map(np.array, params)
  start = threat.init(KEY, params)
  jax.tree.map(np.testing.assert_array_equal, start.params, kept)
  jax.tree.map(np.testing.assert_array_equal, start.ema_params, kept)
  state, _ = threat.update(KEY, start, data, STEPS)
  assert start.params["mean"].is_deleted()  # Donated, as promised.
  jax.tree.map(np.testing.assert_array_equal, params, kept)
  assert np.any(state.params["mean"] != kept["mean"])


def test_unusable_options(gaussian_model):
  with pytest.raises(ConfigError, match="unknown learning-rate decay 'linear'; known: constant"):
    threats.build("scratch", gaussian_model, {"train_steps": 1, "decay": "linear"})
  with pytest.raises(ConfigError, match=r"threat scratch needs the option\(s\) train_steps"):
    threats.build("scratch", gaussian_model, {})
  with pytest.raises(ConfigError, match="threat scratch has no option 'epochs'"):
    threats.build("scratch", gaussian_model, {"train_steps": 1, "epochs": 2})
  with pytest.raises(ConfigError, match="unknown threat 'theft'; known: .*scratch"):
    threats.build("theft", gaussian_model, {})


def test_interface():
  check_constructor(scratch)
