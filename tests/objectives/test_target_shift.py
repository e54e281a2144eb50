"""The target shift against the published form, written out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.models import toy
from udp_jax.objectives.denoising import denoising
from udp_jax.objectives.target_shift import shifted
from udp_jax.ops import timesteps
from udp_jax.ops.keys import normal_each, split_each

MODEL = toy.on_latents()
PARAMS = MODEL.init(jax.random.key(1))
IMAGES = jax.random.uniform(jax.random.key(2), (3, 8, 8, 3))
KEYS = jax.random.split(jax.random.key(3), 3)
TARGET = np.full((8, 8, 3), 0.75, np.float32)


def test_without_weight_it_is_the_denoising_loss():
  probs = timesteps.uniform(50)
  expected, _ = denoising(MODEL, probs)(PARAMS, IMAGES, None, KEYS)
  found, _ = shifted(MODEL, probs, TARGET, 0.0)(PARAMS, IMAGES, None, KEYS)
  np.testing.assert_array_equal(found, expected)


def of_one_timestep(timestep):
  return jnp.zeros(50).at[timestep].set(1.0)


def test_the_shift_is_the_published_one():
  """DDPM's step with posterior variance, from numpy; the target noised to the timestep before."""
  at = 20
  probs = of_one_timestep(at)
  loss, aux = shifted(MODEL, probs, TARGET, 0.5)(PARAMS, IMAGES, None, KEYS)
  plain, _ = denoising(MODEL, probs)(PARAMS, IMAGES, None, KEYS)
  _, key_noise, key_encode, key_step = split_each(KEYS, 4)
  noise, fresh = (np.asarray(normal_each(key, (4, 4, 3))) for key in (key_noise, key_step))
  abar = np.asarray(MODEL.schedule.alphas_cumprod, np.float64)
  x0 = np.asarray(MODEL.encode(PARAMS, IMAGES, key_encode))
  x_t = np.sqrt(abar[at]) * x0 + np.sqrt(1 - abar[at]) * noise
  predicted = np.asarray(MODEL.apply(PARAMS, jnp.float32(x_t), jnp.full(3, at)))
  alpha, before = abar[at] / abar[at - 1], abar[at - 1]
  mean = (x_t - (1 - alpha) / np.sqrt(1 - abar[at]) * predicted) / np.sqrt(alpha)
  step = mean + np.sqrt((1 - before) / (1 - abar[at]) * (1 - alpha)) * fresh
  wanted = np.sqrt(before) * 0.5 + np.sqrt(1 - before) * noise
  expected = np.square(step - wanted).mean((1, 2, 3))
  np.testing.assert_allclose(aux["shift"], expected, rtol=1e-4)
  np.testing.assert_allclose(loss, plain - 0.5 * expected, rtol=1e-4)


def test_the_first_timestep_aims_at_the_target_itself():
  _, aux = shifted(MODEL, of_one_timestep(0), None)(PARAMS, IMAGES, None, KEYS)
  _, towards = shifted(MODEL, of_one_timestep(0), TARGET)(PARAMS, IMAGES, None, KEYS)
  assert np.isfinite(aux["shift"]).all() and not np.allclose(aux["shift"], towards["shift"])
