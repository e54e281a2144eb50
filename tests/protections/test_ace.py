"""ACE: its objective by NumPy, and the order of a round."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.protections.rounds import DATA, KEY, PARAMS, PICTURES, build, deltas
from udp_jax.errors import ConfigError
from udp_jax.ops.image import quantise_within, to_float
from udp_jax.ops.keys import normal_each, split_each, stream
from udp_jax.protections import ace, surrogates, targets
from udp_jax.protections.options import Game, Surrogate

FEW = {"train_steps": 3, "perturb_steps": 4, "learning_rate": 0.05}


def averages(pictures):
  """The latents of the autoencoder of averages, by NumPy."""
  return 2.0 * pictures.reshape(*pictures.shape[:-3], 4, 2, 4, 2, 3).mean((-4, -2)) - 1.0


TARGET = targets.picture("pattern", (8, 8, 3))


@pytest.mark.parametrize("weight", [0.0, 100.0])
def test_the_objective_by_hand(latent_model, weight):
  """At a known timestep: the Gaussian model's prediction is a formula of z_t."""
  model = latent_model._replace(encode=lambda p, x, k: latent_model.encode(p, x, None))
  probs, at = np.zeros(50), 30
  probs[at] = 1.0
  keys = jax.random.split(jax.random.key(3), 6)
  objective = ace.unified_target(model, probs, TARGET, weight)
  found, aux = jax.jit(objective)(PARAMS, to_float(PICTURES), None, keys)
  z, aim = averages(PICTURES / 255), averages(TARGET)
  noise = np.asarray(normal_each(split_each(keys, 4)[1], (4, 4, 3)))
  abar = float(np.cumprod(1 - np.linspace(1e-4, 0.2, 50))[at])
  z_t = np.sqrt(abar) * z + np.sqrt(1 - abar) * noise
  # The mean of the model is 0, its spread exp(-1).
  predicted = np.sqrt(1 - abar) * z_t / (abar * np.exp(-2.0) + 1 - abar)
  expected = np.square(predicted - aim).mean((1, 2, 3))
  expected = expected + weight * np.square(z - aim).mean((1, 2, 3))
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  assert set(np.asarray(aux["timesteps"]).tolist()) == {at}


def test_only_late_timesteps_are_drawn(latent_model, monkeypatch):
  seen = []
  monkeypatch.setattr(ace, "unified_target", lambda model, probs, *rest: seen.append(probs))
  monkeypatch.setattr(ace, "adapted", lambda *_: None)
  for earliest in (0.6, 0.0):
    build("ace", latent_model, earliest=earliest)
  assert np.flatnonzero(seen[0]).tolist() == list(range(30, 50))
  assert seen[1].tolist() == [1 / 50] * 50


@pytest.mark.slow
def test_a_round_perturbs_against_the_surrogate_and_then_trains_it(latent_model):
  """The first steps meet the model itself; the surrogate then trains on protected pictures."""
  method = build("ace", latent_model, **FEW)
  state = jax.jit(method.init)(KEY, DATA, PARAMS)
  update = jax.jit(method.update)
  first, info = update(KEY, state, DATA, PARAMS)
  learner = surrogates.fine_tuned(latent_model, Game(**FEW), Surrogate())
  kept = state.surrogate._replace(opt_state=learner.tx.init(PARAMS))
  steps = jax.jit(learner.steps)
  trained, losses = steps(stream(KEY, "train"), kept, DATA, first.delta, PARAMS)
  np.testing.assert_allclose(info.train_loss, losses, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), first.surrogate.params, trained.params
  )
  # Another surrogate, with the same draws, is attacked elsewhere.
  other = first.surrogate._replace(params=jax.tree.map(lambda leaf: leaf + 2.0, PARAMS))
  second, _ = update(KEY, first, DATA, PARAMS)
  elsewhere, _ = update(KEY, first._replace(surrogate=other), DATA, PARAMS)
  assert np.abs(second.delta - elsewhere.delta).max() > 1e-3


def test_the_saved_files_are_nearer_to_the_target_within_the_budget(latent_model):
  delta = deltas(build("ace", latent_model, **FEW), 5)[-1]
  saved = quantise_within(PICTURES, jnp.asarray(delta.reshape(PICTURES.shape)), 6)
  assert np.abs(np.asarray(saved, int) - PICTURES).max() == 6
  objective = jax.jit(ace.unified_target(latent_model, np.eye(50)[40], TARGET))
  keys = jax.random.split(jax.random.key(9), 6)
  clean, left = (objective(PARAMS, to_float(p), None, keys)[0] for p in (PICTURES, saved))
  assert (left < clean).all()


def test_what_cannot_be_used(latent_model, gaussian_model):
  for earliest in (1.0, -0.1):
    with pytest.raises(ConfigError, match="ace: earliest is .*; it is a share of the schedule"):
      build("ace", latent_model, earliest=earliest)
  with pytest.raises(ConfigError, match="ace needs a latent diffusion model"):
    build("ace", gaussian_model)
  with pytest.raises(ConfigError, match="ace has no use for Game.warmup_rounds"):
    ace.ace(latent_model, radius=0.1, step_size=0.01, game=Game(warmup_rounds=1))
