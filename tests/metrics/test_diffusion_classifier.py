"""Pictures by the prompt under which their noise is predicted best."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.errors import ConfigError
from udp_jax.metrics import diffusion_classifier as dc
from udp_jax.models.base import embed_prompts
from udp_jax.ops.keys import example_keys, normal_each, stream
from udp_jax.runtime import mesh

# Flat pictures of four brightnesses; a prompt says which brightness the model expects.
CONDS = np.array([-0.6, -0.2, 0.2, 0.6], np.float32)[:, None]


PARAMS = {"spread": jnp.float32(0.1)}
LABELS = np.array([0, 3, 2, 1, 1, 0, 2])


@pytest.fixture(scope="module")
def images():
  noise = np.random.default_rng(0).normal(scale=0.1, size=(len(LABELS), 8, 8, 3))
  return np.clip(np.round(127.5 * (CONDS[LABELS][:, :, None, None] + noise + 1)), 0, 255).astype(
    np.uint8
  )


def build(model, **options):
  settings = {"seed": 3, "draws": 10, "per_device_batch_size": 4, "mesh": mesh.make_mesh()}
  return dc.DiffusionClassifier(model, **settings | options)


@pytest.fixture(scope="module")
def prediction(prompted_model, images):
  return build(prompted_model)(PARAMS, images, CONDS)


def test_pictures_are_told_apart(prediction, images):
  np.testing.assert_array_equal(prediction.prompt, LABELS)
  assert prediction.losses.shape == (7, 4) and np.isfinite(prediction.losses).all()
  np.testing.assert_array_equal(dc.hits(prediction, LABELS), 1.0)
  np.testing.assert_array_equal(dc.hits(prediction, np.zeros(7)), LABELS == 0)


def test_losses_are_those_of_the_paper(prediction, prompted_model, images):
  """By hand, a prompt and a draw at a time: noises are shared by the prompts."""
  root = stream(jax.random.key(3), "diffusion-classifier")
  x0 = 2.0 * images.astype(np.float64) / 255.0 - 1.0
  expected = np.zeros((7, 4))
  abars = np.asarray(prompted_model.schedule.alphas_cumprod, np.float64)
  for number, timestep in enumerate(dc.spread_timesteps(50, 10)):
    noise = np.asarray(normal_each(example_keys(root, number, np.arange(7)), (8, 8, 3)))
    abar = abars[timestep]
    x_t = np.sqrt(abar) * x0 + np.sqrt(1 - abar) * noise
    for prompt, mean in enumerate(CONDS[:, 0]):
      away = x_t - np.sqrt(abar) * mean
      predicted = np.sqrt(1 - abar) * away / (abar * 0.1**2 + 1 - abar)
      expected[:, prompt] += np.square(predicted - noise).mean((1, 2, 3)) / 10
  np.testing.assert_allclose(prediction.losses, expected, rtol=1e-4)


def test_batches_change_nothing(prediction, prompted_model, images):
  whole = build(prompted_model, per_device_batch_size=64)(PARAMS, images, CONDS)
  np.testing.assert_allclose(whole.losses, prediction.losses, rtol=1e-5)
  # Nor does a prompt's place.
  turned = build(prompted_model)(PARAMS, images, CONDS[::-1])
  np.testing.assert_allclose(turned.losses[:, ::-1], prediction.losses, rtol=1e-5)
  other = build(prompted_model, seed=4)(PARAMS, images, CONDS)
  assert (np.abs(other.losses - prediction.losses) > 1e-4).any()


def test_prompts_are_dropped_early(prediction, prompted_model, images):
  staged = build(prompted_model, stages=[(3, 3), (5, 2)])(PARAMS, images, CONDS)
  np.testing.assert_array_equal(staged.prompt, LABELS)
  assert (np.isfinite(staged.losses).sum(1) == 2).all()
  # The two that are left have seen all draws.
  left = np.isfinite(staged.losses)
  np.testing.assert_allclose(staged.losses[left], prediction.losses[left], rtol=1e-5)
  # The right one and a neighbour.
  assert (np.abs(np.argsort(staged.losses, axis=1)[:, 1] - LABELS) == 1).all()


def test_timesteps_are_even_from_the_beginning():
  steps = dc.spread_timesteps(1000, 20)
  np.testing.assert_array_equal(np.sort(steps), np.arange(25, 1000, 50))
  assert set(steps[:4] // 250) == {0, 1, 2, 3}
  assert dc.spread_timesteps(50, 50).tolist() != sorted(range(50))
  assert sorted(dc.spread_timesteps(50, 50)) == list(range(50))


@pytest.mark.slow
def test_a_latent_model_with_text(tiny_pipeline):
  model, params = tiny_pipeline.model, tiny_pipeline.params
  conds = embed_prompts(model, params, tiny_pipeline.tokenizer(["a cat", "a dog", "the sea"]))
  pictures = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
  classify = build(model, draws=2)
  found = classify(params, pictures, conds)
  assert found.losses.shape == (3, 3) and found.losses.std(1).min() > 0
  # A prompt's loss does not depend on its place.
  again = classify(params, pictures, conds[::-1])
  np.testing.assert_allclose(again.losses[:, ::-1], found.losses, rtol=1e-4)


def test_settings_that_cannot_be_used(prompted_model, images):
  with pytest.raises(ConfigError, match="draws 1 to 50 timesteps, not 51"):
    build(prompted_model, draws=51)
  for stages in ([(5, 2), (3, 3)], [(3, 2), (5, 2)], [(3, 0)], [(0, 3)]):
    with pytest.raises(ConfigError, match="rising draws and falling prompts"):
      build(prompted_model, stages=stages)
  with pytest.raises(ConfigError, match="2 and more prompts"):
    build(prompted_model)(PARAMS, images, CONDS[:1])
