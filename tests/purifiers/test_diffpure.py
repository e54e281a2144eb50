"""DiffPure on a model whose pictures are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.purifiers.photographs import KEYS, photograph
from udp_jax import purifiers
from udp_jax.errors import ConfigError
from udp_jax.ops.image import to_float


def test_diffpure_pulls_towards_what_the_model_knows(gaussian_model):
  target = 0.2 * jnp.ones((8, 8, 3))
  params = {"mean": 2 * target - 1, "log_spread": jnp.full((3,), -3.0)}
  images = jnp.clip(target + 0.1 * jax.random.normal(jax.random.key(1), (6, 8, 8, 3)), 0, 1)
  distances = []
  for timestep in (1, 10, 40):
    purifier = purifiers.build("diffpure", gaussian_model, {"timestep": timestep})
    got = jax.jit(purifier.apply)(params, KEYS, images)
    distances.append(float(jnp.abs(got - target).mean()))
  assert distances[0] > distances[1] > distances[2]
  assert distances[2] < 0.25 * float(jnp.abs(images - target).mean())


def test_diffpure_with_a_network(tiny_model):
  purifier = purifiers.build("diffpure", tiny_model.model, {"timestep": 3})
  images = to_float(photograph(2, 8, 8))
  got = jax.jit(purifier.apply)(tiny_model.params, KEYS[:2], images)
  assert got.shape == images.shape and np.isfinite(got).all()


def test_the_variance_is_the_models_own_if_it_learns_one(gaussian_model):
  learns = gaussian_model._replace(
    apply_learned=lambda *at: (gaussian_model.apply(*at), jnp.ones_like(at[1]))
  )
  images, params = to_float(photograph(2, 8, 8)), gaussian_model.init(KEYS[0])

  def purified(model, **options):
    method = purifiers.build("diffpure", model, {"timestep": 5, **options})
    return np.asarray(method.apply(params, KEYS[:2], images))

  # A share of 1 is beta, the large variance.
  large = purified(gaussian_model, variance="fixed_large")
  np.testing.assert_allclose(purified(learns), large, atol=1e-5)
  np.testing.assert_array_equal(purified(learns, variance="learned"), purified(learns))
  small = purified(gaussian_model, variance="fixed_small")
  np.testing.assert_array_equal(purified(gaussian_model), small)
  np.testing.assert_array_equal(purified(learns, variance="fixed_small"), small)
  assert np.abs(large - small).max() > 1e-3
  with pytest.raises(ConfigError, match="this model predicts no variance"):
    purified(gaussian_model, variance="learned")
  with pytest.raises(ConfigError, match="not one of fixed_small, fixed_large, learned"):
    purified(learns, variance="large")


def test_diffpure_names_the_way_out_for_other_sizes(gaussian_model):
  purifier = purifiers.build("diffpure", gaussian_model, {"timestep": 2})
  with pytest.raises(ConfigError, match="24x30 do not fit diffpure .* 8x8: .*gridpure"):
    purifier.apply(purifier.init(KEYS[0]), KEYS[:1], to_float(photograph(1)))
