"""Training by scan: batches, shuffling, padding, averaging, and going on where one stopped."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from udp_jax.data import batches
from udp_jax.data.batches import Batch
from udp_jax.objectives import training
from udp_jax.objectives.denoising import denoising, flipped
from udp_jax.ops import timesteps

KEY = jax.random.key(11)


def assert_same(actual, expected):
  """Two pytrees, bit for bit."""
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


# ---- batches ----


@pytest.mark.parametrize("count, size, shape", [(7, 3, (3, 3)), (6, 3, (2, 3)), (4, 9, (1, 4))])
def test_batches_round_trip(count, size, shape):
  generator = np.random.default_rng(0)
  images, reference = generator.integers(0, 256, (2, count, 4, 5, 3), dtype=np.uint8)
  batch = batches.make_batches(images, size, reference=reference, cond=None)
  assert batch.images.shape == (*shape, 4, 5, 3) and batch.images.dtype == np.uint8
  np.testing.assert_array_equal(batches.unbatch(batch.images, count), images)
  np.testing.assert_array_equal(batches.unbatch(batch.reference, count), reference)
  np.testing.assert_array_equal(batches.unbatch(batch.ids, count), np.arange(count))
  assert len(np.unique(batch.ids)) == np.prod(shape)
  weight = np.ravel(batch.weight)
  np.testing.assert_array_equal(weight, np.arange(weight.size) < count)
  # Padding repeats real pictures, so that no black one disturbs anything.
  assert {p.tobytes() for p in batch.images.reshape(-1, 60)} == {p.tobytes() for p in images}


# ---- shuffling ----


@pytest.fixture(scope="module")
def visits():
  """The numbers of the pictures that 3 epochs take, (3, num_batches, lanes)."""
  num_batches, lanes = 5, 4
  ids = np.arange(num_batches * lanes).reshape(num_batches, lanes)
  data = {"ids": ids, "nothing": None, "pictures": ids[..., None, None] * np.ones((2, 2))}
  take = jax.jit(lambda step: batches.take(data, batches.take_rows(KEY, step, num_batches, lanes)))
  steps = [take(jnp.int32(step)) for step in range(3 * num_batches)]
  for step in steps:
    # Every leaf is taken alike.
    assert step["nothing"] is None
    np.testing.assert_array_equal(step["pictures"][:, 1, 0], step["ids"])
  return ids, np.stack([step["ids"] for step in steps]).reshape(3, num_batches, lanes)


def test_every_picture_once_an_epoch_in_its_own_lane(visits):
  ids, taken = visits
  for epoch in taken:
    np.testing.assert_array_equal(np.sort(epoch, axis=0), ids)


def test_orders_differ_between_epochs_and_lanes(visits):
  ids, taken = visits
  rows = taken // ids.shape[1]
  orders = {tuple(rows[epoch, :, lane]) for epoch in range(3) for lane in range(ids.shape[1])}
  # Twelve draws of 120 permutations: fewer than nine different ones has a chance below 1e-4.
  assert len(orders) >= 9


# ---- updates ----


def mean_objective(params, images, cond, keys):
  """Loss of a picture: half the squared distance of its mean to the parameter."""
  del cond, keys
  means = images.mean((1, 2, 3))
  return 0.5 * jnp.square(params["mean"] - means), {}


def test_one_step_by_hand():
  levels = np.array([0, 51, 255, 255], np.uint8)
  images = np.broadcast_to(levels[:, None, None, None], (4, 2, 2, 3))
  weight = np.array([1, 1, 1, 0], np.float32)
  batch = Batch(images, np.arange(4), weight)
  params = {"mean": jnp.float32(1.0)}
  update = jax.jit(training.make_update(mean_objective, optax.sgd(0.5)))
  state = training.init_state(params, optax.sgd(0.5))
  state, loss = update(KEY, state, batch, None)
  np.testing.assert_allclose(loss, (1 + 0.8**2 + 0) / 2 / 3, rtol=1e-6)
  np.testing.assert_allclose(state.params["mean"], 1 - 0.5 * (1 + 0.8 + 0) / 3, rtol=1e-6)
  assert state.step == 1 and state.ema_params is None


def test_delta_is_added():
  images = np.full((2, 2, 2, 3), 51, np.uint8)
  batch = Batch(images, np.arange(2), np.ones(2, np.float32))
  update = jax.jit(training.make_update(mean_objective, optax.sgd(1.0)))
  state = training.init_state({"mean": jnp.float32(0.0)}, optax.sgd(1.0))
  delta = np.stack([np.full((2, 2, 3), 0.1), np.full((2, 2, 3), 0.3)]).astype(np.float32)
  state, _ = update(KEY, state, batch, delta)
  np.testing.assert_allclose(state.params["mean"], 0.2 + 0.2, rtol=1e-6)


def test_average_follows_its_closed_form():
  decay, steps = 0.35, 6
  batch = Batch(np.full((1, 1, 1, 3), 255, np.uint8), np.arange(1), np.ones(1, np.float32))
  tx = optax.sgd(0.25)
  update = jax.jit(training.make_update(mean_objective, tx, ema_decay=decay))
  state = training.init_state({"mean": jnp.float32(0.0)}, tx, ema=True)
  average = 0.0
  for step in range(steps):
    state, _ = update(KEY, state, batch, None)
    # Gradient descent on (m - 1)^2 / 2 from 0 is at 1 - 0.75^n after n steps.
    now = min(decay, (1 + step) / (10 + step))
    average = now * average + (1 - now) * (1 - 0.75 ** (step + 1))
    np.testing.assert_allclose(state.ema_params["mean"], average, rtol=1e-5)
  assert (1 + 1) / (10 + 1) < decay < (1 + 5) / (10 + 5)  # Both branches were seen.


# ---- whole scans, of a model that learns ----


@pytest.fixture(scope="module")
def train(gaussian_model):
  """Compiled `train_steps`, with an average and Adam."""
  model = gaussian_model
  probs = timesteps.uniform(model.schedule.num_steps)
  tx = optax.adam(0.03)
  objective = flipped(denoising(model, probs))
  update = training.make_update(objective, tx, ema_decay=0.99)

  def fresh():
    return training.init_state(model.init(jax.random.key(0)), tx, ema=True)

  def steps(state, data, num_steps, delta, key):
    return training.train_steps(update, key, state, data, num_steps, delta=delta)

  compiled = jax.jit(steps, static_argnums=2)

  def start(state, data, num_steps, delta=None, key=KEY):
    # Always a delta, so that there is one program for each number of steps.
    delta = np.zeros(data.images.shape, np.float32) if delta is None else delta
    return compiled(state, data, num_steps, delta, key)

  return fresh, start


def test_one_scan_is_several(train, pictures):
  fresh, steps = train
  data = batches.make_batches(pictures, 6)
  whole, losses = steps(fresh(), data, 6)
  first, early = steps(fresh(), data, 3)
  parts, late = steps(first, data, 3)
  assert_same(parts, whole)
  np.testing.assert_array_equal(np.concatenate([early, late]), losses)
  assert len(np.unique(losses)) == 6
  other, _ = steps(fresh(), data, 6, key=jax.random.key(12))
  assert np.any(other.params["mean"] != whole.params["mean"])


def test_padding_teaches_nothing(train, pictures):
  fresh, steps = train
  data = batches.make_batches(pictures, 6)
  padded = np.asarray(data.weight) == 0
  assert padded.sum() == 4
  garbage = np.array(data.images)
  garbage[padded] = 255 - garbage[padded]
  clean, losses = steps(fresh(), data, 6)
  dirty, dirty_losses = steps(fresh(), data._replace(images=garbage), 6)
  assert_same(dirty, clean)
  np.testing.assert_array_equal(dirty_losses, losses)
  # And the weight is what keeps it out.
  counted = data._replace(images=garbage, weight=np.ones_like(data.weight))
  assert np.any(steps(fresh(), counted, 6)[0].params["mean"] != clean.params["mean"])


def test_delta_of_the_scan_is_that_of_each_picture(train, pictures):
  fresh, steps = train
  data = batches.make_batches(pictures[:18] // 2, 6)
  levels = np.random.default_rng(3).integers(0, 60, data.images.shape, dtype=np.uint8)
  delta = levels / np.float32(255)
  by_delta, _ = steps(fresh(), data, 6, delta)
  by_pictures, _ = steps(fresh(), data._replace(images=data.images + levels), 6)
  np.testing.assert_allclose(by_delta.params["mean"], by_pictures.params["mean"], atol=1e-5)
