"""Budgets: starts and projections that stay inside, whatever the picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.errors import ConfigError, DivergedError
from udp_jax.ops.keys import example_keys
from udp_jax.protections import constraints

RADIUS = {"linf": 16 / 255, "l2": 0.8}
KEYS = example_keys(jax.random.key(0), 0, np.arange(6))


@pytest.fixture(scope="module")
def images():
  """(6, 5, 4, 3) with a tenth of the values at each end of the range, and mid-grey pictures."""
  values = np.random.default_rng(0).uniform(-0.125, 1.125, size=(6, 5, 4, 3)).clip(0, 1)
  values[4:] = 0.5
  return jnp.asarray(values, jnp.float32)


def size(kind: str, delta) -> np.ndarray:
  """What the budget bounds, of each picture."""
  flat = np.asarray(delta, np.float64).reshape(len(delta), -1)
  return np.abs(flat).max(1) if kind == "linf" else np.linalg.norm(flat, axis=1)


def assert_inside(kind: str, delta, images):
  assert (size(kind, delta) <= RADIUS[kind] * (1 + 1e-6)).all()
  moved = np.asarray(images + delta)
  assert moved.min() >= 0 and moved.max() <= 1


@pytest.mark.parametrize("start", constraints.STARTS)
@pytest.mark.parametrize("kind", RADIUS)
def test_starts_are_inside_and_belong_to_their_picture(kind, start, images):
  init = jax.jit(getattr(constraints, kind)(RADIUS[kind], start=start).init)
  delta = init(KEYS, images)
  assert delta.shape == images.shape and delta.dtype == jnp.float32
  assert_inside(kind, delta, images)
  assert bool(jnp.any(delta)) == (start != "zero")
  np.testing.assert_array_equal(init(KEYS[::-1], images[::-1]), delta[::-1])


def test_sign_start_is_at_the_radius_where_the_box_permits(images):
  radius = np.float32(RADIUS["linf"])
  delta = np.asarray(constraints.linf(RADIUS["linf"], start="sign").init(KEYS, images))
  room = (np.asarray(images) >= radius) & (np.asarray(images) <= 1 - radius)
  np.testing.assert_array_equal(np.abs(delta[room]), radius)
  assert 0.35 < (delta[room] > 0).mean() < 0.65
  # Mid-grey pictures have nothing to clip: every norm is exactly the budget's.
  delta = constraints.l2(RADIUS["l2"], start="sign").init(KEYS, images)
  np.testing.assert_allclose(size("l2", delta)[4:], RADIUS["l2"], rtol=1e-5)


def test_uniform_start_fills_the_ball():
  grey = jnp.full((6, 20, 20, 3), 0.5)
  init = jax.jit(constraints.linf(0.1, start="uniform").init)
  delta = np.asarray(init(KEYS, grey))
  np.testing.assert_allclose(np.quantile(delta, [0.1, 0.5, 0.9]), [-0.08, 0, 0.08], atol=0.006)


@pytest.mark.parametrize("kind", RADIUS)
def test_projection_is_inside_and_idempotent(kind, images):
  project = jax.jit(getattr(constraints, kind)(RADIUS[kind]).project)
  wild = 3 * jax.random.normal(jax.random.key(1), images.shape)
  delta = project(wild, images)
  assert_inside(kind, delta, images)
  assert size(kind, delta)[4:].min() > 0.9 * RADIUS[kind]
  np.testing.assert_allclose(project(delta, images), delta, atol=1e-7)


def test_projection_leaves_what_is_inside_alone(images):
  for kind, radius in RADIUS.items():
    constraint = getattr(constraints, kind)(radius)
    inside = 0.01 * radius * jnp.sign(0.5 - images)
    np.testing.assert_array_equal(constraint.project(inside, images), inside)


def test_linf_projection_is_the_nearest_allowed_delta(images):
  wild = jax.random.normal(jax.random.key(2), images.shape) * 0.1
  clean = np.asarray(images, np.float64)
  lowest = np.maximum(-RADIUS["linf"], -clean)
  expected = np.clip(wild, lowest, np.minimum(RADIUS["linf"], 1 - clean))
  project = constraints.linf(RADIUS["linf"]).project
  np.testing.assert_allclose(project(wild, images), expected, atol=1e-7)


@pytest.mark.parametrize("start", constraints.STARTS)
def test_an_intersection_obeys_both(start, images):
  both = constraints.intersection(
    constraints.l2(RADIUS["l2"], start=start), constraints.linf(RADIUS["linf"])
  )
  wild = 3 * jax.random.normal(jax.random.key(1), images.shape)
  for delta in (both.init(KEYS, images), both.project(wild, images)):
    for kind in RADIUS:
      assert_inside(kind, delta, images)
  assert bool(jnp.any(both.init(KEYS, images))) == (start != "zero")
  small = 0.01 * jnp.sign(0.5 - images)
  np.testing.assert_allclose(both.project(small, images), small, atol=1e-7)


@pytest.mark.parametrize("kind", RADIUS)
def test_unknown_start(kind):
  with pytest.raises(ConfigError, match="unknown start of delta 'corner'; known: zero, uniform"):
    getattr(constraints, kind)(0.1, start="corner")


@pytest.mark.parametrize("kind", RADIUS)
@pytest.mark.parametrize("radius", [0.0, -0.1, float("nan")])
def test_a_budget_is_positive(kind, radius):
  with pytest.raises(ConfigError, match="the radius of a budget must be positive"):
    getattr(constraints, kind)(radius)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_saved(bad: float) -> None:
  clean = np.full((2, 3, 3, 3), 100, np.uint8)
  delta = np.zeros(clean.shape, np.float32)
  np.testing.assert_array_equal(constraints.saved(clean, delta + 0.5, 7.65), clean + 7)
  delta[1, 2, 0, 1] = bad
  with pytest.raises(DivergedError, match="not finite"):
    constraints.saved(clean, delta, 8)
