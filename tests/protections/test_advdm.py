"""AdvDM step by step, on the denoiser whose gradient is known by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.protections.rounds import KEY, PICTURES, RADIUS, STEP
from udp_jax import protections
from udp_jax.data import batches
from udp_jax.errors import ConfigError

PARAMS = {"mean": jnp.zeros((8, 8, 3)), "log_spread": jnp.full((3,), -1.0)}
DATA = batches.make_batches(PICTURES, 3)


def _after(model, rounds: int, **options) -> np.ndarray:
  given = {"radius": RADIUS, "step_size": STEP, "start": "zero"} | options
  protection = protections.build("advdm", model, given)
  state, update = jax.jit(protection.init)(KEY, DATA, PARAMS), jax.jit(protection.update)
  for _ in range(rounds):
    state, _ = update(KEY, state, DATA, PARAMS)
  return np.asarray(state.delta)


def test_steps_go_by_one_step_size_and_stop_at_the_radius(gaussian_model) -> None:
  first = _after(gaussian_model, 1)
  np.testing.assert_allclose(np.abs(first), STEP, rtol=1e-4)
  far = _after(gaussian_model, 10)
  assert np.abs(far).max() <= RADIUS * (1 + 1e-5) and np.abs(far).max() > 0.9 * RADIUS


def test_pictures_go_where_the_loss_rises(gaussian_model) -> None:
  """A network of 1000 x_t is worst where x_t is large: at the first timestep, away from grey."""

  def apply(params, x_t, timesteps, cond=None, keys=None):
    return 1000.0 * x_t

  delta = _after(gaussian_model._replace(apply=apply), 1, a=3000.0)
  away = 2 * (PICTURES.reshape(delta.shape) / 255) - 1
  sure = np.abs(away) > 0.1  # The first timestep's noise is a hundredth.
  np.testing.assert_array_equal(np.sign(delta)[sure], np.sign(away)[sure])
  assert sure.mean() > 0.6


def test_a_network_that_looks_at_nothing_gives_no_direction(gaussian_model) -> None:
  def apply(params, x_t, timesteps, cond=None, keys=None):
    return 0.0 * jax.lax.stop_gradient(x_t)

  assert not _after(gaussian_model._replace(apply=apply), 2).any()


def test_minus_goes_the_other_way(gaussian_model) -> None:
  plus, minus = (_after(gaussian_model, 1, direction=d) for d in ("plus", "minus"))
  np.testing.assert_allclose(plus, -minus, atol=1e-7)
  np.testing.assert_array_equal(plus, _after(gaussian_model, 1))
  with pytest.raises(ConfigError, match="advdm: unknown direction 'up'; known: plus, minus"):
    _after(gaussian_model, 1, direction="up")
