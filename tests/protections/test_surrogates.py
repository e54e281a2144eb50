"""Surrogates that start from the attacked model, and the class that they keep."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.protections.fine_tuned import (
  DATA,
  KEY,
  PARAMS,
  PICTURES,
  PRIOR,
  assert_same,
  build,
  prior_of,
  run,
  surrogate_of,
)
from udp_jax.data import batches
from udp_jax.errors import ConfigError
from udp_jax.models.sampling import Sampling, make_sample
from udp_jax.objectives.denoising import denoising
from udp_jax.ops import timesteps
from udp_jax.ops.keys import example_keys, stream
from udp_jax.protections import targets


@pytest.mark.parametrize("name", ["fsmg", "aspl"])
def test_the_text_encoder_can_be_trained_too(name, tiny_pipeline):
  """Shapes only: nothing is compiled."""
  model, params = tiny_pipeline.model, tiny_pipeline.params
  ids = tiny_pipeline.tokenizer(["a photograph of a cat"] * 2)
  pictures = np.zeros((2, *model.image_shape), np.uint8)
  data = batches.make_batches(pictures, 2, cond=ids)
  protection = build(name, model, trains="denoiser_and_text")
  state = jax.eval_shape(protection.init, KEY, data, params)
  unet, text = state.surrogate.params
  assert jax.tree.structure(unet) == jax.tree.structure(params["unet"])
  assert jax.tree.structure(text) == jax.tree.structure(params["text_encoder"])
  with pytest.raises(ConfigError, match="unknown part 'head' to train"):
    build(name, model, trains="head")


@pytest.fixture(scope="module")
def with_prior(gaussian_model):
  options = {"train_steps": 1, "weight_decay": 0.0}
  return surrogate_of(gaussian_model, **options, prior=prior_of(gaussian_model))


def test_class_pictures_are_the_models_own(class_images, gaussian_model):
  images = class_images
  assert images.shape == (2, 3, 8, 8, 3) and images.dtype == jnp.uint8
  # Grey on average; four steps leave less than all of the model's spread, exp(-1) on [-1, 1].
  assert abs(np.mean(images) - 127.5) < 10 and 15 < np.std(images) < 47
  sample = make_sample(gaussian_model, Sampling(4, scheduler=targets.SCHEDULER))
  key = jax.random.fold_in(stream(KEY, "class pictures"), 1)
  second = jax.jit(sample, static_argnums=2)(key, PARAMS, 3)
  np.testing.assert_allclose(images[1], 255 * np.asarray(second), atol=0.51)
  differ = np.abs(np.diff(np.asarray(images, int).reshape(6, -1), axis=0)).mean(1)
  assert differ.min() > 10


@pytest.mark.parametrize("count", [6, 5])
def test_loss_is_that_of_equation_2(with_prior, class_images, gaussian_model, count):
  """Mean over the pictures plus the weight times the mean of the class; padding has no part."""
  data = batches.make_batches(PICTURES[:count], 3)
  delta = jnp.full(data.images.shape, 0.02)
  state = with_prior.init(KEY, PARAMS)
  after, losses = with_prior.steps(KEY, state, data, delta, PARAMS, class_images)

  objective = denoising(gaussian_model, timesteps.uniform(50), dropout=True)
  rows = batches.take_rows(stream(KEY, "shuffle"), 0, 2, 3)
  batch = batches.take(data, rows)
  of_class = batches.take_rows(stream(KEY, "class"), 0, 2, 3)
  ids = 2**30 + of_class * 3 + jnp.arange(3)
  pictures = batches.take(class_images, of_class)

  def loss(params):
    own = objective(params, batch.images / 255 + 0.02, None, keys(batch.ids))[0]
    prior = objective(params, pictures / 255, None, keys(ids))[0]
    return ((own + 2.0 * prior) * batch.weight).sum() / batch.weight.sum()

  def keys(ids):
    return example_keys(stream(KEY, "draws"), 0, ids)

  value, gradients = jax.jit(jax.value_and_grad(loss))(PARAMS)
  np.testing.assert_allclose(losses[0], value, rtol=1e-5)

  @jax.jit
  def step(gradients):
    updates, _ = with_prior.tx.update(gradients, with_prior.tx.init(PARAMS), PARAMS)
    return optax.apply_updates(PARAMS, updates)

  assert_same(after.params, step(gradients))


def test_fsmg_trains_beside_the_class(gaussian_model, beside_class, class_images):
  states, infos = run(build("fsmg", gaussian_model, **PRIOR), 1)
  np.testing.assert_array_equal(states[1].class_images, class_images)
  start = beside_class.init(KEY, PARAMS)
  trained, losses = beside_class.steps(
    stream(KEY, "train"), start, DATA, None, PARAMS, class_images
  )
  assert_same(states[1].surrogate.params, trained.params)
  np.testing.assert_allclose(infos[0].train_loss, losses, rtol=1e-5)


def test_a_class_is_not_unlearned(gaussian_model, class_images):
  """Pictures are bright, the class is grey: its pictures hold the surrogate back."""
  data, found = batches.make_batches(np.full((6, 8, 8, 3), 220, np.uint8), 3), {}
  for weight in (0.0, 8.0):
    prior = prior_of(gaussian_model, prior_weight=weight)
    surrogate = surrogate_of(gaussian_model, train_steps=30, learning_rate=0.02, prior=prior)
    start = surrogate.init(KEY, PARAMS)
    trained, _ = surrogate.steps(KEY, start, data, None, PARAMS, class_images if weight else None)
    found[weight] = float(trained.params["mean"].mean())
  assert found[0.0] > 0.3 and abs(found[8.0]) < 0.5 * found[0.0]


@pytest.fixture(scope="module")
def texts(tiny_pipeline):
  """Options of a prior with a prompt."""
  class_ids, uncond_ids = tiny_pipeline.tokenizer(["a cat", ""])
  return {"class_ids": class_ids, "uncond_ids": uncond_ids, "guidance_scale": 7.5}


def test_prompts_of_the_class(tiny_pipeline, texts):
  """Embeddings or token ids, as the pictures' own prompts are. Nothing is compiled."""
  model, params = tiny_pipeline.model, tiny_pipeline.params
  prior = prior_of(model, **texts)
  ids = tiny_pipeline.tokenizer(["the sea"] * 2)[None]
  cond = np.zeros((1, 2, 77, 16), np.float32)
  np.testing.assert_array_equal(prior.cond_like(params, ids), texts["class_ids"][None])
  assert jax.eval_shape(prior.cond_like, params, cond).shape == (1, 77, 16)
  with pytest.raises(ConfigError, match="told of a text, and no more"):
    prior.cond_like(params, {"text": cond[0]})


@pytest.mark.slow
def test_a_round_beside_a_class_with_a_prompt(tiny_pipeline, texts):
  """Shapes only, with embeddings; test_latent_models.py has token ids."""
  model, params = tiny_pipeline.model, tiny_pipeline.params
  pictures, cond = np.zeros((2, *model.image_shape), np.uint8), np.zeros((2, 77, 16), np.float32)
  data = batches.make_batches(pictures, 2, cond=cond)
  protection = build("aspl", model, **PRIOR | texts)
  state = jax.eval_shape(protection.init, KEY, data, params)
  after, _ = jax.eval_shape(protection.update, KEY, state, data, params)
  assert jax.tree.structure(after) == jax.tree.structure(state)
  assert state.class_images.shape == (3, 2, 16, 16, 3)


def test_priors_that_cannot_be_made(tiny_pipeline, gaussian_model):
  with pytest.raises(ConfigError, match="prior_weight needs class_prompt"):
    prior_of(tiny_pipeline.model)
  with pytest.raises(ConfigError, match="prior_weight needs class_prompt"):
    prior_of(tiny_pipeline.model, class_ids=(1, 2), guidance_scale=7.5)
  with pytest.raises(ConfigError, match="with 0 class pictures"):
    prior_of(gaussian_model, num_class_images=0)
  with pytest.raises(ConfigError, match="prior_weight is -1"):
    prior_of(gaussian_model, prior_weight=-1)
  assert prior_of(gaussian_model, prior_weight=0.0) is None
