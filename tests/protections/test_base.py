"""The two loops that protections are made of, on objectives whose steps are known by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.protections import banded
from udp_jax import protections
from udp_jax.data import batches
from udp_jax.objectives.base import negate
from udp_jax.ops.keys import stream
from udp_jax.protections import constraints
from udp_jax.protections.base import Rounds, fixed
from udp_jax.protections.options import Spectrum

KEY = jax.random.key(8)
RADIUS, STEP = 8 / 255, 3 / 255


def some_pictures(count=10):
  return np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)


def towards(params, images, cond, keys):
  """Squared distance to the grey value `params["grey"]`: its gradient's sign is known."""
  del cond, keys
  return jnp.square(images - params["grey"]).mean((1, 2, 3)), {}


def noisy(params, images, cond, keys):
  """An objective that draws, and whose draws decide the sign of the step."""
  del params, cond
  noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
  return (images * noise).sum((1, 2, 3)), {}


def init_params(key):
  return {"grey": jax.random.uniform(key)}


# ---- pgd ----


def test_steps_by_hand():
  pictures = some_pictures()
  constraint = constraints.linf(RADIUS)
  protection = protections.pgd(towards, constraint, protections.sign_descent(STEP))
  batch = jax.tree.map(lambda leaf: leaf[0], batches.make_batches(pictures, 10))
  params = {"grey": jnp.float32(0.5)}
  state, update = protection.init(KEY, batch, params), jax.jit(protection.update)
  images = pictures / 255
  expected = np.zeros_like(images)
  for step in range(4):
    state, info = update(KEY, state, batch, params)
    distance = np.square(images + expected - 0.5).mean((1, 2, 3))
    np.testing.assert_allclose(info.loss, distance, rtol=1e-4)
    expected = expected - STEP * np.sign(images + expected - 0.5)
    expected = np.clip(expected, -RADIUS, RADIUS)
    expected = np.clip(images + expected, 0, 1) - images
    np.testing.assert_allclose(state.delta, expected, atol=1e-6)
    assert state.step == step + 1


def test_a_schedule_of_step_sizes():
  batch = jax.tree.map(lambda leaf: leaf[0], batches.make_batches(some_pictures(2) // 2 + 100, 2))
  rate = optax.piecewise_constant_schedule(0.01, {2: 0.1})
  protection = protections.pgd(towards, constraints.linf(0.5), protections.sign_descent(rate))
  params = {"grey": jnp.float32(0.0)}
  state, update = protection.init(KEY, batch, params), jax.jit(protection.update)
  for moved in (0.01, 0.02, 0.021):
    state, _ = update(KEY, state, batch, params)
    np.testing.assert_allclose(state.delta, -moved, atol=1e-6)


def test_only_delta_is_differentiated():
  """No gradient of the weights in the max step: a network without one is attacked all the same."""

  @jax.custom_jvp
  def opaque(weight):
    return weight

  @opaque.defjvp
  def refuse(primals, tangents):
    raise AssertionError("the weights were differentiated")

  def objective(params, images, cond, keys):
    return towards({"grey": opaque(params["grey"])}, images, cond, keys)

  protection = protections.pgd(objective, constraints.linf(RADIUS), protections.sign_descent(STEP))
  batch = jax.tree.map(lambda leaf: leaf[0], batches.make_batches(some_pictures(), 10))
  params = {"grey": jnp.float32(0.5)}
  state = jax.eval_shape(protection.init, KEY, batch, params)
  jax.eval_shape(protection.update, KEY, state, batch, params)


# ---- pgd in a band ----


@pytest.mark.parametrize("kind", banded.KINDS)
def test_a_step_moves_delta_by_its_size_in_the_mean(kind):
  state, band = banded.pulled_by(banded.PARTS, kind)
  (first, *_), delta = state.variable, np.asarray(state.delta)
  level = band.levels[0]
  assert len(state.variable) == (2 if kind == "pyramid" else 1)
  # The steepest step of the variable is along the sign of what it is pulled by.
  np.testing.assert_array_equal(np.sign(first), np.sign(level.operator(jnp.asarray(banded.PARTS))))
  for level, own in zip(band.levels, state.variable, strict=True):
    assert np.ptp(np.abs(own)) < 1e-6
    np.testing.assert_allclose(
      np.abs(level.operator(own)).mean(), level.share * banded.STEP, rtol=1e-4
    )
  if kind != "pyramid":
    np.testing.assert_allclose(np.abs(delta).mean(), banded.STEP, rtol=1e-4)
    np.testing.assert_allclose(delta, level.operator(first), atol=1e-6)
  else:
    total = sum(level.operator(own) for level, own in zip(band.levels, state.variable))
    np.testing.assert_allclose(delta, total, atol=1e-6)


@pytest.mark.parametrize("kind", banded.KINDS)
def test_bounds_of_variable_levels_and_delta(kind):
  state, band = banded.pulled_by(banded.PARTS, kind, steps=12)
  for level, own in zip(band.levels, state.variable, strict=True):
    assert np.abs(own).max() <= 3 * level.share * banded.RADIUS * (1 + 1e-5)
  assert np.abs(state.delta).max() <= banded.RADIUS * (1 + 1e-6)
  # The budget is filled, and what was pulled moved the right way.
  assert np.sqrt(np.square(state.delta).mean()) > 0.5 * banded.RADIUS
  assert np.vdot(state.delta, band.levels[0].operator(jnp.asarray(banded.PARTS))) > 0


def test_a_band_of_all_frequencies_is_no_band():
  """With a reach of one radius it is projected gradient descent itself."""
  drawn = jax.random.normal(jax.random.key(2), (5, 1, 12, 16, 3))

  def objective(params, images, cond, keys):
    number = jax.random.bits(keys[0]) % 5
    return (images * drawn[number] + jnp.square(images) / 2).sum((1, 2, 3)), {}

  found = []
  for given in (Spectrum(), Spectrum("dct", band_high=2.0, band_reach=1.0)):
    constraint = constraints.linf(banded.RADIUS, start="zero", spectrum=given)
    method = protections.pgd(objective, constraint, protections.sign_descent(banded.STEP))
    batch = banded.grey_batch()
    state, update = method.init(KEY, batch, None), jax.jit(method.update)
    for _ in range(9):
      state, _ = update(KEY, state, batch, None)
    found.append(np.asarray(state.delta))
  assert np.abs(found[0]).max() == pytest.approx(banded.RADIUS)
  close = np.abs(found[0] - found[1]) < 1e-5
  assert close.mean() > 0.99  # A gradient near zero may fall on either side.


def test_a_diverged_gradient_shows():
  state, _ = banded.pulled_by(jnp.asarray(banded.PARTS).at[0, 3, 4, 1].set(jnp.nan), "gaussian")
  assert np.isnan(state.delta).any()


def test_other_optimisers_move_as_far_as_without_a_band():
  moves = {}
  for kind in ("", "gaussian"):
    given = banded.KINDS.get(kind, Spectrum())
    constraint = constraints.linf(banded.RADIUS, spectrum=given)

    def objective(params, images, cond, keys):
      return -(images * banded.PARTS).sum((1, 2, 3)), {}

    for name, tx in (("adam", optax.adam(banded.STEP)), ("l2", protections.l2_descent(0.3))):
      method = protections.pgd(objective, constraint, tx)
      state = method.init(KEY, banded.grey_batch(), None)
      state, _ = method.update(KEY, state, banded.grey_batch(), None)
      moves[kind, name] = np.abs(state.delta).mean()
  assert moves["gaussian", "adam"] == pytest.approx(moves["", "adam"], rel=1e-3)
  assert 0.5 < moves["gaussian", "l2"] / moves["", "l2"] < 1.2  # Some of it is clipped.


# ---- over_batches ----


@pytest.fixture(scope="module")
def lifted():
  constraint = constraints.linf(RADIUS, start="uniform")
  inner = protections.pgd(noisy, constraint, protections.sign_descent(STEP))
  return {steps: protections.over_batches(inner, num_steps=steps) for steps in (1, 2)}


def deltas_after(protection, data, rounds):
  state, update = jax.jit(protection.init)(KEY, data, None), jax.jit(protection.update)
  for _ in range(rounds):
    state, info = update(KEY, state, data, None)
  return state, info


def test_two_steps_a_round_are_two_rounds(lifted):
  data = batches.make_batches(some_pictures(), 4)
  twice, info = deltas_after(lifted[1], data, 4)
  double, double_info = deltas_after(lifted[2], data, 2)
  # Two programs, so that the compiler may round differently.
  np.testing.assert_allclose(twice.delta, double.delta, atol=2e-7)
  np.testing.assert_array_equal(twice.step, double.step)
  # What is reported is the last step.
  np.testing.assert_allclose(info.loss, double_info.loss, atol=1e-4)
  assert lifted[2].perturb_steps == 2


def test_a_pictures_delta_does_not_depend_on_the_batch(lifted):
  pictures = some_pictures()
  expected = None
  for size in (1, 4, 10):
    state, _ = deltas_after(lifted[1], batches.make_batches(pictures, size), 3)
    delta = batches.unbatch(state.delta, 10)
    expected = delta if expected is None else expected
    np.testing.assert_array_equal(delta, expected)
  assert len(np.unique(delta.reshape(10, -1), axis=0)) == 10


def test_run_is_the_rounds_in_one_call(lifted):
  data = batches.make_batches(some_pictures(), 4)
  state, last = deltas_after(lifted[1], data, 3)
  images, infos = protections.run(lifted[1], KEY, data, None, num_rounds=3)
  assert images.shape == data.images.shape and infos.loss.shape == (3, *data.ids.shape)
  np.testing.assert_allclose(images, data.images / np.float32(255) + state.delta, atol=1e-6)
  np.testing.assert_array_equal(infos.loss[-1], last.loss)


def test_fixed_stays():
  protection = fixed(constraints.linf(RADIUS, start="sign").init)
  data = batches.make_batches(some_pictures(), 4)
  start = jax.jit(protection.init)(KEY, data, None)
  state, info = protection.update(KEY, start, data, None)
  assert state is start and info.loss.shape == data.ids.shape and info.train_loss.shape == (0,)


# ---- bilevel ----


def max_min(learning_rate=0.0, **options):
  """A surrogate that knows one grey value, and pictures that flee from it."""
  inner = protections.pgd(negate(towards), constraints.linf(RADIUS), protections.sign_descent(STEP))
  rounds = Rounds(train_steps=2)._replace(**options)
  tx = optax.sgd(learning_rate)
  return protections.bilevel(inner, towards, tx, rounds, init_params=init_params)


def rounds(protection, num_rounds, params=None, donate=False):
  """States after 0, 1, 2... rounds, fetched, and the infos."""
  data = jax.tree.map(jnp.asarray, batches.make_batches(some_pictures(), 5))
  state = jax.jit(protection.init)(KEY, data, params)
  update = jax.jit(protection.update, donate_argnums=1 if donate else ())
  states, infos = [jax.tree.map(np.array, state)], []
  for _ in range(num_rounds):
    state, info = update(KEY, state, data, params)
    states.append(jax.tree.map(np.array, state))
    infos.append(info)
  return states, infos


def test_a_round_trains_and_then_perturbs():
  states, infos = rounds(max_min(learning_rate=0.1), 1)
  start = float(states[0].surrogate.params["grey"])
  np.testing.assert_allclose(start, init_params(stream(KEY, "surrogate"))["grey"], rtol=1e-6)
  assert infos[0].train_loss.shape == (2,) and states[1].surrogate.step == 2
  # Gradient steps by hand, on the batches that the shuffle took: both cover all pictures.
  trained = float(states[1].surrogate.params["grey"])
  assert trained != start
  images = np.asarray(batches.make_batches(some_pictures(), 5).images) / 255
  away = np.clip(images + STEP * np.sign(images - trained), 0, 1) - images
  np.testing.assert_allclose(states[1].delta, away, atol=1e-6)
  np.testing.assert_allclose(infos[0].loss, -np.square(images - trained).mean((2, 3, 4)), rtol=1e-4)


def test_warm_up_rounds_only_train():
  states, infos = rounds(max_min(learning_rate=0.1, warmup_rounds=2), 3)
  for state, info in zip(states[1:3], infos[:2], strict=True):
    np.testing.assert_array_equal(state.delta, 0)
    assert np.isnan(info.loss).all() and np.isfinite(info.train_loss).all()
    assert state.inner.step.max() == 0
  greys = [float(state.surrogate.params["grey"]) for state in states]
  assert len(set(greys)) == 4
  assert np.any(states[3].delta != 0) and np.isfinite(infos[2].loss).all()
  assert [int(state.round) for state in states] == [0, 1, 2, 3]


def test_restarts_give_a_fresh_surrogate():
  # A learning rate of zero leaves the surrogate where it started last.
  states, _ = rounds(max_min(restart_every=2), 5)
  root = stream(KEY, "surrogate")
  starts = [init_params(k)["grey"] for k in (root, *(jax.random.fold_in(root, r) for r in (2, 4)))]
  greys = [float(state.surrogate.params["grey"]) for state in states[1:]]
  expected = [float(starts[i]) for i in (0, 0, 1, 1, 2)]
  np.testing.assert_allclose(greys, expected, rtol=1e-6)
  assert len(set(greys)) == 3
  # The count goes on, so that a fresh surrogate does not see the same draws again.
  assert [int(state.surrogate.step) for state in states] == [0, 2, 4, 6, 8, 10]


def test_without_restarts_the_surrogate_stays():
  states, _ = rounds(max_min(), 3)
  assert len({float(state.surrogate.params["grey"]) for state in states}) == 1


def test_given_parameters_are_the_start_and_stay_alive():
  params = {"grey": jnp.float32(0.25)}
  states, _ = rounds(max_min(learning_rate=0.1), 2, params=params, donate=True)
  assert states[0].surrogate.params["grey"] == np.float32(0.25)
  assert states[2].surrogate.params["grey"] != np.float32(0.25)
  assert not params["grey"].is_deleted() and params["grey"] == 0.25


def test_timesteps_of_the_family_reach_the_perturb_step(gaussian_model):
  """Almost all draws at the start of the schedule, where the little noise cannot be found."""
  pictures = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
  params = {"mean": jnp.zeros((8, 8, 3)), "log_spread": jnp.zeros(3)}
  options = {"radius_255": 8, "step_size_255": 2, "start": "zero", "a": 50.0}
  protection = protections.build("advdm", gaussian_model, options)
  data = batches.make_batches(pictures, 6)
  state = protection.init(KEY, data, params)
  _, info = jax.jit(protection.update)(KEY, state, data, params)
  # noise - sigma x_t for small sigma: one of noise, and next to nothing of it recovered.
  np.testing.assert_allclose(-info.loss, 1.0, atol=0.25)
