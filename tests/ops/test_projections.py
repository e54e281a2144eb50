"""Projections against NumPy, their optimality, per-image independence, and awkward values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from udp_jax.ops import projections

SHAPE = (3, 4, 5, 3)


def _delta(scale=1.0, seed=0):
  return (scale * np.random.default_rng(seed).normal(size=SHAPE)).astype(np.float32)


def _norms(delta):
  return np.linalg.norm(np.asarray(delta, np.float64).reshape(len(delta), -1), axis=1)


@pytest.mark.parametrize("radius", [0.3, np.array([0.1, 0.5, 10.0], np.float32)])
def test_linf(radius):
  delta = _delta()
  bound = np.broadcast_to(radius, (3,))[:, None, None, None]
  np.testing.assert_array_equal(
    projections.linf(delta, radius), np.clip(delta, -np.float32(bound), np.float32(bound))
  )


@pytest.mark.parametrize("radius", [0.3, np.array([0.1, 5.0, 100.0], np.float32)])
def test_l2_scales_images_outside_and_leaves_the_others(radius):
  delta = _delta()
  got = np.asarray(projections.l2(delta, radius))
  bound, norm = np.broadcast_to(radius, (3,)), _norms(delta)
  for i in range(3):
    if norm[i] <= bound[i]:
      np.testing.assert_array_equal(got[i], delta[i])
    else:
      np.testing.assert_allclose(got[i], delta[i] * bound[i] / norm[i], rtol=1e-5)


def test_radius_of_a_wrong_shape_is_refused():
  with pytest.raises(ValueError, match="radius"):
    projections.linf(_delta(), np.ones((3, 1)))


def test_l2_of_zero_and_of_huge_values():
  np.testing.assert_array_equal(projections.l2(jnp.zeros(SHAPE), 1.0), np.zeros(SHAPE))
  got = projections.l2(jnp.full((1, 4), 1e30), 2.0)
  np.testing.assert_allclose(got, np.full((1, 4), 1.0), rtol=1e-5)


@pytest.mark.parametrize("project", [projections.linf, projections.l2])
def test_nan_is_not_hidden_and_stays_in_its_image(project):
  delta = _delta()
  delta[1, 0, 0, 0] = np.nan
  got = np.asarray(project(delta, 0.1))
  assert np.isnan(got[1, 0, 0, 0])
  assert np.isfinite(got[[0, 2]]).all()


def test_masked():
  mask = np.zeros((4, 5, 1), bool)
  mask[1:3, 2:] = True
  got = np.asarray(projections.masked(_delta(), mask))
  np.testing.assert_array_equal(got, _delta() * mask)
  np.testing.assert_array_equal(projections.masked(_delta(), mask.astype(np.float32)), got)


def test_box_keeps_images_valid_even_at_the_last_bit():
  generator = np.random.default_rng(1)
  images = generator.uniform(size=(4, 50, 50, 3)).astype(np.float32)
  images[0, :5] = 0.0
  images[1, :5] = 1.0
  images[2] = np.float32(2.0) ** -generator.integers(0, 40, size=(50, 50, 3))
  delta = generator.normal(size=images.shape).astype(np.float32)
  boxed = np.asarray(projections.box(delta, images))
  total = images + boxed
  assert total.min() >= 0.0 and total.max() <= 1.0
  np.testing.assert_allclose(total, np.clip(images + delta, 0, 1), atol=1e-6)


def test_budget_then_box_satisfies_both():
  images = np.random.default_rng(2).uniform(size=SHAPE).astype(np.float32)
  radius = np.array([0.02, 0.1, 0.6], np.float32)
  for project, norm in (
    (projections.linf, lambda d: np.abs(d).reshape(3, -1).max(1)),
    (projections.l2, _norms),
  ):
    got = np.asarray(projections.box(project(_delta(), radius), images))
    assert np.all(norm(got) <= radius * (1 + 1e-6))
    assert np.all((images + got >= 0) & (images + got <= 1))


def test_steps_are_the_steepest_directions():
  gradient = _delta(seed=3)
  gradient[2] = 0.0
  flat = gradient.reshape(3, -1).astype(np.float64)
  sign = np.asarray(projections.sign_step(gradient)).reshape(3, -1)
  unit = np.asarray(projections.l2_normalised(gradient)).reshape(3, -1)
  # The gain along the best direction of unit norm is the dual norm of the gradient.
  np.testing.assert_allclose((flat * sign).sum(1), np.abs(flat).sum(1), rtol=1e-6)
  np.testing.assert_allclose((flat * unit).sum(1), np.linalg.norm(flat, axis=1), rtol=1e-6)
  np.testing.assert_array_equal(unit[2], 0.0)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_l2_normalised_at_extreme_scales(scale):
  got = projections.l2_normalised(jnp.asarray(_delta() * np.float32(scale)))
  np.testing.assert_allclose(_norms(got), 1.0, rtol=1e-5)


def test_one_images_result_does_not_depend_on_the_others():
  delta = _delta()
  for function in (
    lambda d: projections.linf(d, 0.3),
    lambda d: projections.l2(d, 0.3),
    projections.sign_step,
    projections.l2_normalised,
  ):
    np.testing.assert_allclose(function(delta)[1:2], function(delta[1:2]), rtol=1e-6)


RADII = np.array([0.1, 0.2, 0.4], np.float32)


def test_random_linf_is_uniform_in_the_ball():
  got = np.asarray(projections.random_linf(jax.random.key(0), (3, 40, 40, 3), RADII))
  for i, radius in enumerate(RADII):
    assert np.abs(got[i]).max() <= radius
    assert scipy.stats.kstest(got[i].ravel() / radius, "uniform", (-1, 2)).pvalue > 0.01


def test_random_sign_is_a_fair_corner():
  got = np.asarray(projections.random_sign(jax.random.key(1), (3, 40, 40, 3), RADII))
  for i, radius in enumerate(RADII):
    assert set(np.unique(got[i])) == {-radius, radius}
    assert abs((got[i] > 0).mean() - 0.5) < 4 * 0.5 / 4800**0.5


def test_random_l2_is_uniform_in_the_ball():
  # In d dimensions (|x| / radius)^d is uniform, and so is the direction.
  got = np.asarray(projections.random_l2(jax.random.key(2), (20_000, 3), 0.5), np.float64)
  norm = np.linalg.norm(got, axis=1)
  assert norm.max() <= 0.5 * (1 + 1e-6)
  assert scipy.stats.kstest((norm / 0.5) ** 3, "uniform").pvalue > 0.01
  # Archimedes: each coordinate of a uniform direction in three dimensions is uniform.
  assert scipy.stats.kstest(got[:, 0] / norm, "uniform", (-1, 2)).pvalue > 0.01
  per_image = projections.random_l2(jax.random.key(3), (3, 8, 8, 3), RADII)
  assert np.all(_norms(per_image) <= RADII) and np.all(_norms(per_image) > 0.9 * RADII)


def test_grey_makes_the_channels_of_chosen_pictures_equal_and_stays_in_the_set():
  delta, images = _delta(), np.full(SHAPE, 0.9, np.float32)
  delta = projections.box(projections.linf(delta, 0.3), images)
  chosen = np.array([1, 0, 1], np.uint8)
  for project, expected in (
    (projections.grey, np.asarray(delta).mean(axis=-1, keepdims=True)),
    (projections.first_channel, np.asarray(delta)[..., :1]),
  ):
    made = np.asarray(project(delta, chosen))
    np.testing.assert_allclose(made[::2], np.broadcast_to(expected, SHAPE)[::2], rtol=1e-6)
    np.testing.assert_array_equal(made[1], delta[1])
    np.testing.assert_array_equal(made[0, ..., 0], made[0, ..., 2])
    np.testing.assert_allclose(projections.box(projections.linf(made, 0.3), images), made)
