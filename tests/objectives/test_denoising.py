"""The denoising loss against losses worked out by hand with the same keys."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.objectives.by_hand import KEYS, PARAMS, PROBS, brightness, by_hand, linear_model
from udp_jax.objectives import denoising as denoising_lib
from udp_jax.objectives.denoising import denoising, flipped
from udp_jax.ops import schedules
from udp_jax.ops.keys import example_keys


@pytest.mark.parametrize("prediction_type", schedules.PREDICTION_TYPES)
def test_denoising(images, prediction_type):
  objective = denoising(linear_model(prediction_type), PROBS)
  losses, aux = jax.jit(objective)(PARAMS, images, None, KEYS)
  expected, steps = by_hand(images, KEYS, prediction_type)
  np.testing.assert_array_equal(aux["timesteps"], steps)
  assert len(set(steps)) > 2
  np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_denoising_passes_conditioning_and_dropout(images):
  cond = np.linspace(-1, 1, 6).astype(np.float32)
  objective = denoising(linear_model(), PROBS, dropout=True)
  losses, _ = jax.jit(objective)(PARAMS, images, cond, KEYS)
  np.testing.assert_allclose(losses, by_hand(images, KEYS, cond=cond, factor=2)[0], rtol=1e-5)


def test_timesteps_follow_their_distribution(images):
  probs = np.zeros(20, np.float32)
  probs[[3, 17]] = 0.75, 0.25
  keys = example_keys(jax.random.key(1), 0, np.arange(600))
  objective = denoising(linear_model(), probs)
  _, aux = jax.jit(objective)(PARAMS, np.repeat(images, 100, axis=0), None, keys)
  drawn = np.bincount(aux["timesteps"], minlength=20)
  assert drawn[3] + drawn[17] == 600
  assert abs(drawn[3] - 450) < 5 * np.sqrt(600 * 0.75 * 0.25)


def test_flipped_mirrors_each_picture_by_its_own_key(images):
  keys = example_keys(jax.random.key(1), 0, np.arange(300))
  many = np.repeat(images[:1], 300, axis=0)
  losses, aux = jax.jit(flipped(brightness))(None, many, None, keys)
  left, right = images[0, :, 0].mean(), images[0, :, -1].mean()
  mirrored = np.isclose(losses, right)
  np.testing.assert_allclose(losses, np.where(mirrored, right, left), rtol=1e-6)
  np.testing.assert_allclose(aux["right"], np.where(mirrored, left, right), rtol=1e-6)
  assert abs(mirrored.sum() - 150) < 5 * np.sqrt(300) / 2
  # The objective's own draws stay independent of the flip: it gets the second half of the split.
  denoising = denoising_lib.denoising(linear_model(), PROBS)
  _, aux = jax.jit(flipped(denoising))(PARAMS, images, None, KEYS)
  second = [jax.random.split(key, 2)[1] for key in KEYS]
  np.testing.assert_array_equal(aux["timesteps"], by_hand(images, second)[1])
