"""Sampling from models whose samples are known, and guidance by hand."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.errors import ConfigError
from udp_jax.models import sampling
from udp_jax.models.sampling import Sampling


@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_a_model_that_is_sure_samples_what_it_knows(sampler: str, gaussian_model) -> None:
  mean = np.random.default_rng(0).uniform(-0.9, 0.9, (8, 8, 3)).astype(np.float32)
  params = {"mean": jnp.asarray(mean), "log_spread": jnp.full((3,), -12.0)}
  draw = sampling.make_sample(gaussian_model, Sampling(sample_steps=5, sampler=sampler))
  found = draw(jax.random.key(0), params, 2)
  np.testing.assert_allclose(found, np.stack([(mean + 1) / 2] * 2), atol=2e-3)


def test_samples_have_the_spread_that_was_learned(gaussian_model) -> None:
  params = {"mean": jnp.zeros((8, 8, 3)), "log_spread": jnp.full((3,), np.log(0.3))}
  draw = sampling.make_sample(gaussian_model, Sampling(sample_steps=50))
  found = 2 * np.asarray(draw(jax.random.key(0), params, 40)) - 1
  assert found.mean() == pytest.approx(0.0, abs=0.02)
  # By noise at a signal of less than one, and by steps that are not infinitely short.
  assert found.std() == pytest.approx(0.3, rel=0.1)


def test_timesteps_lie_where_the_scheduler_says(gaussian_model) -> None:
  few = Sampling(sample_steps=5)
  spaced = {"timestep_spacing": "trailing", "steps_offset": 0}
  np.testing.assert_array_equal(sampling.visited(gaussian_model, few), [40, 30, 20, 10, 0])
  trailing = sampling.visited(gaussian_model, dataclasses.replace(few, scheduler=spaced))
  np.testing.assert_array_equal(trailing, [49, 39, 29, 19, 9])


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"sampler": "euler"}, "unknown sampler 'euler'; known: ddim, ddpm, dpm_solver_pp_2m"),
    ({"sampler": "ddpm", "eta": 0.5}, "eta is an option of ddim, not of ddpm"),
    ({"sample_steps": 51}, "sample_steps: "),
  ],
)
def test_what_no_sampler_can_do(changes: dict, message: str, gaussian_model) -> None:
  with pytest.raises(ConfigError, match=message):
    sampling.make_chain(gaussian_model, Sampling(**changes))


def test_guidance_by_hand(gaussian_model) -> None:
  def apply(params, x_t, timesteps, cond=None, keys=None):
    return params * x_t + cond.sum((-1, -2))[:, None] + timesteps[:, None]

  def embed(params, ids):
    return params * jnp.asarray(ids, jnp.float32)[..., None]

  model = gaussian_model._replace(apply=apply, embed=embed)
  x_t, at = np.array([[1.0], [2.0], [3.0]], np.float32), np.array([4, 4, 4])
  ids, empty = np.array([[1, 2]]), np.array([[0, 1]])
  predict = sampling.guided(model, 2.0, ids, empty, 3, 7.5)
  given, none = 2 * x_t + 6 + 4, 2 * x_t + 2 + 4
  np.testing.assert_allclose(predict(x_t, at), none + 7.5 * (given - none), rtol=1e-6)
  # Embeddings are taken as they are.
  predict = sampling.guided(model, 2.0, np.full((1, 2, 1), 5.0), None, 3, 1.0)
  np.testing.assert_allclose(predict(x_t, at), 2 * x_t + 10 + 4, rtol=1e-6)
  with pytest.raises(ConfigError, match="guidance needs `uncond`"):
    sampling.guided(model, 2.0, ids, None, 3, 7.5)


def test_ids_are_whole_numbers() -> None:
  assert sampling.are_ids(np.zeros((1, 3), np.int32))
  assert not sampling.are_ids(np.zeros((1, 3, 4), np.float32)) and not sampling.are_ids(None)
