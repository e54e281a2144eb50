"""What samplers share: where a chain starts from a picture, and regions that it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.ops import guidance, samplers, schedules

SAMPLERS = [samplers.ddim, samplers.ddpm, samplers.dpm_solver_pp_2m]


@pytest.mark.parametrize(
  "num_steps,strength,expected", [(50, 1.0, 0), (50, 0.6, 20), (50, 0.02, 49), (7, 0.5, 4)]
)
def test_start_step(num_steps, strength, expected):
  assert samplers.start_step(num_steps, strength) == expected


@pytest.mark.parametrize(
  "strength,message", [(0.0, r"\(0, 1\]"), (1.1, r"\(0, 1\]"), (0.01, "leaves none")]
)
def test_start_step_rejects(strength, message):
  with pytest.raises(ValueError, match=message):
    samplers.start_step(50, strength)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_known_region_is_kept_and_seen_by_the_network(sampler):
  schedule = schedules.scaled_linear()
  generator = np.random.default_rng(0)
  x0, noise, x_t = jnp.asarray(generator.uniform(-1, 1, size=(3, 2, 6)), jnp.float32)
  mask = jnp.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.5])
  seen = []

  def predict(x, timesteps):
    jax.debug.callback(lambda *at: seen.append(at), x, timesteps[0], ordered=True)
    return 0.5 * x

  def run(known):
    options = samplers.arguments(sampler.__name__, {"num_steps": 5, "clip_sample": False})
    return sampler(jax.random.key(1), predict, schedule, x_t, known=known, **options)

  free = run(None)
  jax.effects_barrier()
  seen.clear()
  kept = run(samplers.Known(x0, mask, noise))
  jax.effects_barrier()
  np.testing.assert_array_equal(kept[:, 3:5], x0[:, 3:5])
  # The network here looks at each value alone, so nothing else changes.
  np.testing.assert_allclose(kept[:, :3], free[:, :3], rtol=1e-5)
  assert np.all(kept[:, 5] != x0[:, 5]) and np.all(kept[:, 5] != free[:, 5])
  # Before the end the region has the noise of the timestep that the network is told.
  assert len(seen) == 5
  for x, timestep in seen[1:]:
    expected = schedules.add_noise(schedule, x0, noise, timestep)
    np.testing.assert_allclose(x[:, 3:5], expected[:, 3:5], rtol=1e-5, atol=1e-6)


def _denoise(x_t, timesteps, cond):
  return x_t * cond["gain"][:, None] + timesteps[:, None].astype(x_t.dtype) + cond["bias"]


def test_guidance_goes_beyond_the_condition():
  x_t = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)
  timesteps = jnp.array([3, 7])
  cond = {"gain": jnp.array([1.0, 2.0]), "bias": jnp.ones((2, 3))}
  uncond = {"gain": jnp.array([0.5, -1.0]), "bias": jnp.zeros((2, 3))}
  with_cond, without = (_denoise(x_t, timesteps, c) for c in (cond, uncond))
  for scale in (0.0, 0.5, 1.0, 7.5):
    got = guidance.guided(_denoise, cond, uncond, scale=scale)(x_t, timesteps)
    np.testing.assert_allclose(got, without + scale * (with_cond - without), rtol=1e-5)


def test_no_guidance_needs_no_second_prediction():
  seen = []

  def denoise(x_t, timesteps, cond):
    seen.append(x_t.shape)
    return x_t

  predict = guidance.guided(denoise, jnp.zeros((2, 1)), None, scale=1.0)
  predict(jnp.zeros((2, 3)), jnp.zeros((2,), jnp.int32))
  guidance.guided(denoise, jnp.zeros((2, 1)), jnp.zeros((2, 1)), scale=2.0)(
    jnp.zeros((2, 3)), jnp.zeros((2,), jnp.int32)
  )
  assert seen == [(2, 3), (4, 3)]
