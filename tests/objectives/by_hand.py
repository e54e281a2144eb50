"""A linear model whose losses are worked out by hand, with the same keys."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.models.base import DiffusionModel
from udp_jax.ops import schedules, timesteps
from udp_jax.ops.keys import example_keys

KEYS = example_keys(jax.random.key(5), 2, np.arange(6))
SHAPE = (4, 4, 3)


def linear_model(prediction_type: str = "epsilon") -> DiffusionModel:
  """Prediction = gain * x_t + 0.01 t; keys (dropout) double it."""

  def encode(params, images, keys):
    del params, keys
    return 2 * images - 1

  def apply(params, x_t, steps, cond=None, keys=None):
    out = params["gain"] * x_t + 0.01 * steps.astype(jnp.float32)[:, None, None, None]
    out = out if cond is None else out + cond[:, None, None, None]
    return out if keys is None else 2 * out

  schedule = schedules.linear(20, beta_end=0.3, prediction_type=prediction_type)
  # Objectives neither make parameters nor decode, so there is nothing to put there.
  return DiffusionModel(None, encode, apply, None, None, schedule, SHAPE, SHAPE)  # type: ignore[arg-type]


PARAMS = {"gain": jnp.float32(0.7)}
PROBS = timesteps.uniform(20)


@jax.jit
def draws(key):
  """The timestep and the noise that a picture's key makes."""
  key_t, key_noise, _ = jax.random.split(key, 3)
  return timesteps.sample(key_t, PROBS), jax.random.normal(key_noise, SHAPE)


def by_hand(images, keys, prediction_type="epsilon", cond=None, factor=1.0):
  """The loss of each picture in NumPy, float64, from the draws that the keys make."""
  model = linear_model(prediction_type)
  losses, steps = [], []
  for i, image in enumerate(images):
    t, noise = draws(keys[i])
    t, noise = int(t), np.asarray(noise, np.float64)
    abar = float(model.schedule.alphas_cumprod[t])
    x0 = 2 * np.asarray(image, np.float64) - 1
    x_t = np.sqrt(abar) * x0 + np.sqrt(1 - abar) * noise
    velocity = np.sqrt(abar) * noise - np.sqrt(1 - abar) * x0
    target = {"epsilon": noise, "sample": x0, "v_prediction": velocity}[prediction_type]
    prediction = 0.7 * x_t + 0.01 * t + (0 if cond is None else cond[i])
    losses.append(np.mean((target - factor * prediction) ** 2))
    steps.append(t)
  return np.array(losses), np.array(steps)


def brightness(params, images, cond, keys):
  """A deterministic objective that can tell left from right."""
  del params, cond, keys
  return images[:, :, 0].mean((1, 2)), {"right": images[:, :, -1].mean((1, 2))}


def darker(keys, images):
  return images * jax.vmap(lambda key: jax.random.uniform(key))(keys)[:, None, None, None]
