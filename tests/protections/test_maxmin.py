"""Joint steps of the max-min game: one backward pass for both sides."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from udp_jax import protections
from udp_jax.data import batches
from udp_jax.errors import ConfigError
from udp_jax.ops import bands, projections
from udp_jax.ops.image import to_float
from udp_jax.protections import constraints

KEY = jax.random.key(8)
RADIUS, STEP, RATE = 8 / 255, 3 / 255, 0.05
PICTURES = np.random.default_rng(0).integers(60, 200, (11, 4, 4, 3)).astype(np.uint8)


def distance(params, images, cond, keys):
  """Squared distance to the grey value `params["grey"]`: both gradients are known."""
  del cond, keys
  return jnp.square(images - params["grey"]).mean((1, 2, 3)), {}


def make(train_steps, ascent=None):
  ascent = ascent or protections.sign_descent(STEP)
  constraint = constraints.linf(RADIUS, start="zero")
  init = lambda key: {"grey": jnp.float32(0.1)}
  sgd = optax.sgd(RATE)
  return protections.joint(
    distance, sgd, constraint, ascent, init_params=init, train_steps=train_steps
  )


def test_one_step_by_hand():
  data = batches.make_batches(PICTURES, 4)
  protection = make(1)
  state, info = jax.jit(protection.update)(KEY, protection.init(KEY, data, None), data, None)
  images = data.images / 255
  visited = np.isfinite(info.loss)
  # One picture of each lane.
  np.testing.assert_array_equal(visited.sum(0), 1)
  counted = visited & (data.weight > 0)
  # Away from grey, against the weights before the step; the repeats that fill a batch stay.
  expected = np.where(counted[..., None, None, None], STEP * np.sign(images - 0.1), 0)
  np.testing.assert_allclose(state.delta, expected, atol=1e-6)
  chosen = images[counted]
  loss = np.square(chosen - 0.1).mean()
  np.testing.assert_allclose(info.train_loss, [loss], rtol=1e-5)
  np.testing.assert_allclose(-info.loss[counted].mean(), loss, rtol=1e-5)
  slope = 2 * (0.1 - chosen).mean()
  np.testing.assert_allclose(state.surrogate.params["grey"], 0.1 - RATE * slope, rtol=1e-5)


def test_an_epoch_visits_every_picture_once_and_keeps_the_budget():
  data = batches.make_batches(PICTURES, 4)
  protection = make(3)
  update = jax.jit(protection.update)
  state = protection.init(KEY, data, None)
  for round_ in range(4):
    state, info = update(KEY, state, data, None)
    assert np.isfinite(info.loss).all()
    largest = np.abs(np.asarray(state.delta)).max((2, 3, 4))[data.weight > 0]
    np.testing.assert_allclose(largest, min((round_ + 1) * STEP, RADIUS), atol=1e-6)
  assert state.surrogate.step == 12 and state.round == 4


def test_rounds_of_any_length_make_the_same_game():
  data = batches.make_batches(PICTURES, 4)
  deltas = []
  for train_steps, rounds in ((2, 6), (4, 3)):
    protection = make(train_steps)
    state = protection.init(KEY, data, None)
    for _ in range(rounds):
      state, _ = jax.jit(protection.update)(KEY, state, data, None)
    deltas.append(np.asarray(state.delta))
  np.testing.assert_array_equal(*deltas)


def test_an_ascent_with_a_memory_is_refused():
  with pytest.raises(ValueError, match="must keep no state"):
    make(1, ascent=optax.adam(STEP))


@pytest.mark.parametrize("name", ["udp", "eudp"])
def test_options_that_joint_steps_do_not_have(name, tiny_model):
  options = {"radius_255": 8, "step_size_255": 2, "joint_gradients": True}
  assert protections.build(name, tiny_model.model, options).phases == ()
  for option in ("warmup_rounds", "restart_every"):
    with pytest.raises(ConfigError, match="does not go with warmup_rounds or restart_every"):
      protections.build(name, tiny_model.model, options | {option: 2})


def test_joint_steps_stay_in_the_band(gaussian_model):
  options = {"train_steps": 4, "learning_rate": 0.05, "joint_gradients": True}
  options |= {"radius": RADIUS, "step_size": STEP, "band": "gaussian", "band_sigma": 1.0}
  method = protections.build("udp", gaussian_model, options)
  data = batches.make_batches(np.tile(PICTURES, (1, 2, 2, 1)), 4)
  state, update = method.init(KEY, data, None), jax.jit(method.update)
  for _ in range(4):
    state, info = update(KEY, state, data, None)
  assert np.isfinite(info.loss).any() and np.abs(state.delta).max() > 2 * STEP
  made = jax.vmap(lambda own: bands.gaussian_band(own, 1.0))(state.inner.variable[0])
  images = to_float(data.images)
  expected = projections.box(jnp.clip(made, -RADIUS, RADIUS), images)
  np.testing.assert_allclose(state.delta, expected, atol=1e-6)
