"""Objectives against losses worked out by hand with the same keys."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax import objectives
from udp_jax.models.base import DiffusionModel
from udp_jax.ops import schedules, timesteps
from udp_jax.randomness import example_keys

KEYS = example_keys(jax.random.key(5), 2, np.arange(6))
SHAPE = (4, 4, 3)


def linear_model(prediction_type: str = "epsilon") -> DiffusionModel:
  """Prediction = gain * x_t + 0.01 t; keys (dropout) double it."""

  def encode(params, images, keys):
    del params, keys
    return 2 * images - 1

  def apply(params, x_t, steps, cond=None, keys=None):
    out = params["gain"] * x_t + 0.01 * steps[:, None, None, None]
    out = out if cond is None else out + cond[:, None, None, None]
    return out if keys is None else 2 * out

  schedule = schedules.linear(20, beta_end=0.3, prediction_type=prediction_type)
  # Objectives neither make parameters nor decode, so there is nothing to put there.
  return DiffusionModel(None, encode, apply, None, None, schedule, SHAPE, SHAPE)  # type: ignore[arg-type]


PARAMS = {"gain": jnp.float32(0.7)}
PROBS = timesteps.uniform(20)


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).uniform(size=(6, *SHAPE)).astype(np.float32)


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


@pytest.mark.parametrize("prediction_type", schedules.PREDICTION_TYPES)
def test_denoising(images, prediction_type):
  objective = objectives.denoising(linear_model(prediction_type), PROBS)
  losses, aux = jax.jit(objective)(PARAMS, images, None, KEYS)
  expected, steps = by_hand(images, KEYS, prediction_type)
  np.testing.assert_array_equal(aux["timesteps"], steps)
  assert len(set(steps)) > 2
  np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_denoising_passes_conditioning_and_dropout(images):
  cond = np.linspace(-1, 1, 6).astype(np.float32)
  objective = objectives.denoising(linear_model(), PROBS, dropout=True)
  losses, _ = jax.jit(objective)(PARAMS, images, cond, KEYS)
  np.testing.assert_allclose(losses, by_hand(images, KEYS, cond=cond, factor=2)[0], rtol=1e-5)


def test_timesteps_follow_their_distribution(images):
  probs = np.zeros(20, np.float32)
  probs[[3, 17]] = 0.75, 0.25
  keys = example_keys(jax.random.key(1), 0, np.arange(600))
  objective = objectives.denoising(linear_model(), probs)
  _, aux = jax.jit(objective)(PARAMS, np.repeat(images, 100, axis=0), None, keys)
  drawn = np.bincount(aux["timesteps"], minlength=20)
  assert drawn[3] + drawn[17] == 600
  assert abs(drawn[3] - 450) < 5 * np.sqrt(600 * 0.75 * 0.25)


def brightness(params, images, cond, keys):
  """A deterministic objective that can tell left from right."""
  del params, cond, keys
  return images[:, :, 0].mean((1, 2)), {"right": images[:, :, -1].mean((1, 2))}


def test_negate(images):
  plain, aux = brightness(None, images, None, KEYS)
  losses, negated_aux = objectives.negate(brightness)(None, images, None, KEYS)
  np.testing.assert_array_equal(losses, -plain)
  np.testing.assert_array_equal(negated_aux["right"], aux["right"])


def test_weighted(images):
  denoising = objectives.denoising(linear_model(), PROBS)
  both = objectives.weighted((2.0, denoising), (-3.0, brightness))
  losses, aux = jax.jit(both)(PARAMS, images, None, KEYS)
  first = [jax.random.split(key, 2)[0] for key in KEYS]
  expected = 2 * by_hand(images, first)[0] - 3 * images[:, :, 0].mean((1, 2))
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  assert set(aux) == {"timesteps", "right"}


def test_a_single_weighted_term_draws_with_the_keys_themselves(images):
  def spy(params, images, cond, keys):
    return images.mean((1, 2, 3)), {"keys": jax.random.key_data(keys)}

  losses, aux = objectives.weighted((2.0, spy))(None, images, None, KEYS)
  np.testing.assert_array_equal(aux["keys"], jax.random.key_data(KEYS))
  np.testing.assert_allclose(losses, 2 * images.mean((1, 2, 3)), rtol=1e-6)


def test_flipped_mirrors_each_picture_by_its_own_key(images):
  keys = example_keys(jax.random.key(1), 0, np.arange(300))
  many = np.repeat(images[:1], 300, axis=0)
  losses, aux = jax.jit(objectives.flipped(brightness))(None, many, None, keys)
  left, right = images[0, :, 0].mean(), images[0, :, -1].mean()
  mirrored = np.isclose(losses, right)
  np.testing.assert_allclose(losses, np.where(mirrored, right, left), rtol=1e-6)
  np.testing.assert_allclose(aux["right"], np.where(mirrored, left, right), rtol=1e-6)
  assert abs(mirrored.sum() - 150) < 5 * np.sqrt(300) / 2
  # The objective's own draws stay independent of the flip: it gets the second half of the split.
  denoising = objectives.denoising(linear_model(), PROBS)
  _, aux = jax.jit(objectives.flipped(denoising))(PARAMS, images, None, KEYS)
  second = [jax.random.split(key, 2)[1] for key in KEYS]
  np.testing.assert_array_equal(aux["timesteps"], by_hand(images, second)[1])


# ---- expectations ----


def darker(keys, images):
  return images * jax.vmap(lambda key: jax.random.uniform(key))(keys)[:, None, None, None]


def test_the_identity_alone_changes_nothing(images):
  plain = objectives.denoising(linear_model(), PROBS)
  expected = objectives.over_transforms(plain, [lambda keys, images: images])
  for got, wanted in zip(
    jax.jit(expected)(PARAMS, images, None, KEYS),
    jax.jit(plain)(PARAMS, images, None, KEYS),
    strict=True,
  ):
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_every_picture_gets_a_transform_by_its_own_key(images):
  black, white = (lambda keys, x, level=level: jnp.full_like(x, level) for level in (0.0, 1.0))
  keys = example_keys(jax.random.key(1), 0, np.arange(300))
  many = np.repeat(images[:1], 300, axis=0)
  objective = objectives.over_transforms(brightness, [black, darker, white])
  run = jax.jit(objective)
  losses = np.asarray(run(None, many, None, keys)[0])
  counts = [(losses == 0).sum(), ((losses > 0) & (losses < 1)).sum(), (losses == 1).sum()]
  assert sum(counts) == 300 and np.abs(np.array(counts) - 100).max() < 5 * np.sqrt(300 * 2 / 9)
  few = run(None, many[:5], None, keys[:5])[0]
  np.testing.assert_allclose(few, losses[:5], rtol=1e-6)


def test_transforms_are_differentiated_through(images):
  objective = objectives.over_transforms(brightness, [darker])
  found = jax.jit(jax.grad(lambda x: objective(None, x, None, KEYS)[0].sum()))(images)
  # Brightness is linear: what a pixel weighs is the factor of its picture.
  factor = jax.jit(objective)(None, np.ones_like(images), None, KEYS)[0]
  np.testing.assert_allclose(found[:, :, 0].sum((1, 2)), factor, rtol=1e-5)
  assert factor.min() > 0 and factor.std() > 0.05


def test_draws_are_averaged(images):
  objective = objectives.over_transforms(brightness, [darker], 400)
  losses, _ = jax.jit(objective)(None, images, None, KEYS)
  plain = images[:, :, 0].mean((1, 2))
  # The mean of 400 uniform factors is 1/2, give or take five of its deviations.
  assert np.abs(losses / plain - 0.5).max() < 5 * np.sqrt(1 / 12 / 400)
  one = jax.jit(objectives.over_transforms(brightness, [darker]))(None, images, None, KEYS)[0]
  assert np.abs(one / plain - 0.5).max() > 0.1


def test_averaged_is_the_mean_over_keys_of_its_own(images):
  def draw(params, images, cond, keys):
    return jax.vmap(lambda key: jax.random.normal(key))(keys), {"keys": jax.random.key_data(keys)}

  assert objectives.averaged(draw, 1) is draw
  losses, aux = jax.jit(objectives.averaged(draw, 64))(None, images, None, KEYS)
  assert losses.shape == (6,) and 0 < np.std(losses) < 5 / np.sqrt(64)
  assert not np.array_equal(aux["keys"], jax.random.key_data(KEYS))


def test_a_sum_of_losses_gives_gradients_that_know_no_batch(images):
  objective = objectives.flipped(objectives.denoising(linear_model(), PROBS))
  gradient = jax.jit(jax.grad(lambda x, keys: objective(PARAMS, x, None, keys)[0].sum()))
  together = gradient(images, KEYS)
  assert np.abs(together).min(axis=(1, 2, 3)).max() > 0
  for i in (0, 4):
    # Elsewhere in the batch, beside other pictures.
    order = np.roll(np.arange(6), i + 1)
    others = np.where(np.arange(6)[:, None, None, None] == 0, images[order], 0.5)
    np.testing.assert_array_equal(gradient(others, KEYS[order])[0], together[order[0]])
