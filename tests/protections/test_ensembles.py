"""Ensembles: the gradient is the mean of the models' gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.protections.rounds import DATA, KEY, PICTURES, RADIUS, STEP
from udp_jax.errors import ConfigError
from udp_jax.models import toy
from udp_jax.objectives.denoising import denoising
from udp_jax.ops import timesteps
from udp_jax.protections.advdm import advdm
from udp_jax.protections.base import run
from udp_jax.protections.ensembles import ensemble, mean_over_models

PIXELS, LATENTS = toy.on_pixels(), toy.on_latents()
FIRST, OTHER = PIXELS.init(jax.random.key(1)), PIXELS.init(jax.random.key(2))
SIZES = {"radius": RADIUS, "step_size": STEP, "start": "zero"}


def test_twice_the_same_model_is_that_model():
  of_two = ensemble([PIXELS, PIXELS], **SIZES)
  found, _ = run(of_two, KEY, DATA, (FIRST, FIRST), num_rounds=4)
  expected, _ = run(advdm(PIXELS, **SIZES), KEY, DATA, FIRST, num_rounds=4)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  other, _ = run(of_two, KEY, DATA, (FIRST, OTHER), num_rounds=4)
  assert np.abs(np.asarray(other) - np.asarray(expected)).max() > STEP / 2


def test_the_gradient_is_the_mean():
  models = PIXELS, LATENTS
  params = FIRST, LATENTS.init(jax.random.key(3))
  objectives = [denoising(model, timesteps.uniform(50)) for model in models]
  images, keys = jnp.asarray(PICTURES[:3] / 255, jnp.float32), jax.random.split(KEY, 3)

  def gradient(objective, params):
    return jax.grad(lambda images: objective(params, images, None, keys)[0].sum())(images)

  each = [gradient(one, own) for one, own in zip(objectives, params, strict=True)]
  found = gradient(mean_over_models(objectives), params)
  np.testing.assert_allclose(found, (each[0] + each[1]) / 2, rtol=1e-5, atol=1e-7)


def test_what_is_no_ensemble():
  with pytest.raises(ConfigError, match="at least one model"):
    mean_over_models([])
  smaller = PIXELS._replace(image_shape=(4, 4, 3))
  with pytest.raises(ConfigError, match="pictures of one size"):
    ensemble([PIXELS, smaller], **SIZES)
