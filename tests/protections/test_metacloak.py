"""MetaCloak: its pool, the order of its visits, and the transforms that it expects."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.protections.fine_tuned import (
  DATA,
  KEY,
  PARAMS,
  PICTURES,
  assert_same,
  build,
  surrogate_of,
)
from udp_jax import registry
from udp_jax.errors import ConfigError
from udp_jax.metrics import denoising as metric
from udp_jax.objectives import transforms
from udp_jax.objectives.base import negate
from udp_jax.objectives.denoising import denoising
from udp_jax.objectives.transforms import over_transforms
from udp_jax.ops import timesteps
from udp_jax.ops.image import quantise_within, to_float
from udp_jax.ops.keys import example_keys, stream
from udp_jax.protections.metacloak import metacloak

POOL = {"warmup_rounds": 4, "restart_every": 2, "perturb_steps": 2}


def taken(pool, number):
  """A snapshot."""
  return jax.tree.map(lambda leaf: leaf[number], pool)


@pytest.fixture(scope="module")
def ran(gaussian_model):
  """States and infos of nine rounds: four of the pool, visits of two to snapshots 0, 1, 2 (cut)."""
  method = build("metacloak", gaussian_model, **POOL)
  states, infos = [jax.jit(method.init)(KEY, DATA, PARAMS)], []
  update = jax.jit(method.update)
  for _ in range(9):
    state, info = update(KEY, states[-1], DATA, PARAMS)
    states.append(state)
    infos.append(info)
  return states, infos


def test_the_warm_up_fills_the_pool_with_a_fine_tuning_on_clean_pictures(ran, gaussian_model):
  states, infos = ran
  learner = surrogate_of(gaussian_model)
  state, snapshots = learner.init(KEY, PARAMS), [PARAMS]
  for number in range(4):
    state, losses = learner.steps(stream(KEY, "train"), state, DATA, None, PARAMS)
    np.testing.assert_allclose(infos[number].train_loss, losses, rtol=1e-5)
    assert np.isnan(infos[number].loss).all() and np.abs(states[number + 1].delta).max() == 0
    if number % 2:
      snapshots.append(state.params)
  for number, snapshot in enumerate(snapshots):
    assert_same(taken(states[4].pool, number), snapshot)
  for later in states[5:]:
    jax.tree.map(np.testing.assert_array_equal, later.pool, states[4].pool)


def test_visits_begin_at_snapshots_and_train_on_protected_pictures(ran, gaussian_model):
  states, infos = ran
  learner = surrogate_of(gaussian_model)
  for number in range(4, 9):
    before, after = states[number], states[number + 1]
    theta = before.surrogate.params
    if number % 2 == 0:
      theta = taken(before.pool, (number - 4) // 2)
    fresh = learner.init(KEY, theta)._replace(step=before.surrogate.step)
    trained, losses = learner.steps(stream(KEY, "train"), fresh, DATA, after.delta, PARAMS)
    np.testing.assert_allclose(infos[number].train_loss, losses, rtol=1e-5)
    assert_same(after.surrogate.params, trained.params)


def test_a_step_climbs_the_loss_of_the_transformed_picture(ran, gaussian_model):
  """The first two steps by hand, against the model itself, the first snapshot."""
  states, infos = ran
  loss = negate(denoising(gaussian_model, timesteps.uniform(50)))
  objective = over_transforms(loss, [transforms.TRANSFORMS["blur_and_flip"]])
  images, delta = to_float(DATA.images), jnp.zeros(DATA.images.shape)

  @jax.jit
  @jax.vmap
  def gradient(moved, keys):
    return jax.grad(lambda seen: objective(PARAMS, seen, None, keys)[0].sum())(moved)

  for step in range(2):
    root = stream(KEY, "perturb")
    keys = jnp.stack([example_keys(root, step, ids) for ids in DATA.ids])
    move = -jnp.sign(gradient(images + delta, keys)) / 255
    delta = jnp.clip(delta + move, -6 / 255, 6 / 255)
  different = np.abs(np.asarray(states[5].delta - delta)) > 1e-6
  assert different.mean() < 0.01  # Signs of gradients near zero may differ.


def test_the_transform_is_a_blur_and_a_mirror_image():
  """By SciPy's filter, on the picture or its mirror image, at some sigma of the range."""
  from scipy import ndimage

  keys = example_keys(KEY, 0, np.arange(30))
  picture = np.random.default_rng(5).uniform(size=(12, 10, 3)).astype(np.float32)
  moved = np.asarray(
    transforms.TRANSFORMS["blur_and_flip"](keys, jnp.repeat(jnp.asarray(picture)[None], 30, 0))
  )
  sigmas = np.linspace(*transforms.WIDE_BLURS, 200)
  blurred = np.stack(
    [ndimage.gaussian_filter(picture, (s, s, 0), mode="mirror", radius=(3, 3, 0)) for s in sigmas]
  )
  both = np.stack([blurred, blurred[:, :, ::-1]])
  distance = np.abs(moved[:, None, None] - both[None]).max((-1, -2, -3))
  assert distance.min((1, 2)).max() < 0.01
  mirrored = distance.min(2).argmin(1)
  assert 5 < mirrored.sum() < 25


def test_the_saved_files_keep_the_budget_and_raise_the_loss(ran, gaussian_model):
  delta = ran[0][-1].delta.reshape(PICTURES.shape)
  saved = np.asarray(quantise_within(PICTURES, delta, 6))
  assert 3 <= np.abs(saved.astype(int) - PICTURES).max() <= 6
  loss = metric.denoising_loss(gaussian_model, seed=5, draws=32)
  assert loss(PARAMS, saved) > loss(PARAMS, PICTURES)


def test_the_published_pool_has_six_snapshots(gaussian_model):
  published = {"warmup_rounds": 500, "restart_every": 100, "train_steps": 2, "perturb_steps": 6}
  method = build("metacloak", gaussian_model, **published)
  state = jax.eval_shape(method.init, KEY, DATA, PARAMS)
  assert state.pool["mean"].shape == (6, 8, 8, 3)
  # Four times over the pool: 14,400 perturb steps after 1000 train steps.
  assert 500 * method.trains == 1000 and 4 * 6 * 100 * method.perturb_steps == 14400
  assert registry.fields(metacloak)["transforms"].default == "blur_and_flip"


def test_what_cannot_be_used(gaussian_model):
  for options in ({"restart_every": 0}, {"warmup_rounds": 1}):
    with pytest.raises(ConfigError, match="metacloak: restart_every is .*, warmup_rounds"):
      build("metacloak", gaussian_model, **POOL | options)
  with pytest.raises(ConfigError, match="has no option 'joint_gradients'"):
    build("metacloak", gaussian_model, joint_gradients=True)
