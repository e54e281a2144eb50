"""FSMG and ASPL, whose surrogates start from the attacked model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax import constraints, lookup, objectives, protections, training
from udp_jax.errors import ConfigError
from udp_jax.ops import timesteps
from udp_jax.protections import surrogates
from udp_jax.randomness import stream

KEY = jax.random.key(6)
PICTURES = np.random.default_rng(0).integers(60, 200, (6, 8, 8, 3)).astype(np.uint8)
PARAMS = {"mean": jnp.zeros((8, 8, 3)), "log_spread": jnp.full((3,), -1.0)}
DATA = training.make_batches(PICTURES, 3)
TRAINING = {"train_steps": 3, "learning_rate": 0.05}


def build(name, model, **options):
  constructor = lookup.constructor("udp_jax.protections", name)
  return constructor(model, **{"radius": 6 / 255, "step_size": 1 / 255} | TRAINING | options)


def run(protection, rounds):
  """(states, infos) of all rounds; states from the start on."""
  states, infos = [jax.jit(protection.init)(KEY, DATA, PARAMS)], []
  update = jax.jit(protection.update)
  for _ in range(rounds):
    state, info = update(KEY, states[-1], DATA, PARAMS)
    states.append(state)
    infos.append(info)
  return states, infos


def surrogate_of(model):
  made = surrogates.fine_tuned(
    model, **TRAINING, weight_decay=1e-2, clip_norm=1.0, trains="denoiser", rank=4
  )
  return made._replace(steps=jax.jit(made.steps))


def assert_same(first, second):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), first, second)


@pytest.fixture(scope="module")
def fsmg_run(gaussian_model):
  return run(build("fsmg", gaussian_model, warmup_rounds=2), 5)


def test_fsmg_trains_on_clean_pictures_first_and_then_no_more(fsmg_run, gaussian_model):
  states, infos = fsmg_run
  for state in states[:3]:
    assert not np.any(state.delta)
  surrogate = surrogate_of(gaussian_model)
  trained = surrogate.init(KEY, PARAMS)
  for _ in range(2):
    trained, _ = surrogate.steps(stream(KEY, "train"), trained, DATA, None, PARAMS)
  assert trained.step == 6
  for state in states[2:]:
    assert_same(state.surrogate.params, trained.params)
  assert np.abs(trained.params["mean"]).max() > 0.05
  for info in infos[2:]:
    np.testing.assert_array_equal(info.train_loss, infos[1].train_loss)
  assert [bool(np.isnan(info.loss).all()) for info in infos] == [True, True, False, False, False]


def test_fsmg_attacks_what_it_trained(fsmg_run, gaussian_model):
  """From the warm-up on it is AdvDM against the surrogate."""
  states, _ = fsmg_run
  objective = objectives.negate(objectives.denoising(gaussian_model, timesteps.uniform(50)))
  inner = protections.pgd(objective, constraints.linf(6 / 255), protections.sign_descent(1 / 255))
  perturb = protections.over_batches(inner)
  deltas, update = perturb.init(KEY, DATA, None), jax.jit(perturb.update)
  for state in states[3:]:
    deltas, _ = update(stream(KEY, "perturb"), deltas, DATA, state.surrogate.params)
    np.testing.assert_allclose(state.delta, deltas.delta, atol=1e-6)
  assert np.abs(states[-1].delta).max() > 2.5 / 255


def test_fsmg_without_a_warm_up_is_another_method(gaussian_model):
  with pytest.raises(ConfigError, match="use advdm"):
    build("fsmg", gaussian_model, warmup_rounds=0)


def test_aspl_round_by_hand(gaussian_model):
  """Copy and train on clean, perturb against the copy, train on protected; optimisers afresh."""
  states, infos = run(build("aspl", gaussian_model, perturb_steps=2), 2)
  surrogate = surrogate_of(gaussian_model)
  objective = objectives.negate(objectives.denoising(gaussian_model, timesteps.uniform(50)))
  inner = protections.pgd(objective, constraints.linf(6 / 255), protections.sign_descent(1 / 255))
  perturb = protections.over_batches(inner, num_steps=2)
  deltas, theta, step = perturb.init(KEY, DATA, None), PARAMS, 0
  update = jax.jit(perturb.update)
  for state, info in zip(states[1:], infos, strict=True):
    fresh = surrogate.init(KEY, theta)._replace(step=jnp.int32(step))
    copy, _ = surrogate.steps(stream(KEY, "copy"), fresh, DATA, None, PARAMS)
    deltas, _ = update(stream(KEY, "perturb"), deltas, DATA, copy.params)
    trained, losses = surrogate.steps(stream(KEY, "train"), fresh, DATA, deltas.delta, PARAMS)
    theta, step = trained.params, int(trained.step)
    np.testing.assert_allclose(state.delta, deltas.delta, atol=1e-6)
    assert_same(state.surrogate.params, theta)
    np.testing.assert_allclose(info.train_loss, losses, rtol=1e-5)
    assert state.surrogate.opt_state == () and state.surrogate.step == step
  assert step == 6 and np.abs(deltas.delta).max() > 2.5 / 255
  assert np.abs(copy.params["mean"] - theta["mean"]).max() > 1e-3


@pytest.mark.parametrize("name", ["fsmg", "aspl"])
def test_the_text_encoder_can_be_trained_too(name, tiny_pipeline):
  """Shapes only: nothing is compiled."""
  model, params = tiny_pipeline.model, tiny_pipeline.params
  ids = tiny_pipeline.tokenizer(["a photograph of a cat"] * 2)
  pictures = np.zeros((2, *model.image_shape), np.uint8)
  data = training.make_batches(pictures, 2, cond=ids)
  protection = build(name, model, trains="denoiser_and_text")
  state = jax.eval_shape(protection.init, KEY, data, params)
  unet, text = state.surrogate.params
  assert jax.tree.structure(unet) == jax.tree.structure(params["unet"])
  assert jax.tree.structure(text) == jax.tree.structure(params["text_encoder"])
  with pytest.raises(ConfigError, match="unknown part 'head' to train"):
    build(name, model, trains="head")
