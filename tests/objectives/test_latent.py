"""Objectives of latents against closed forms, on an autoencoder of averages (`latent_model`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.data.batches import Batch
from udp_jax.errors import ConfigError
from udp_jax.models.perceptual import PerceptualDistance
from udp_jax.objectives import denoising as denoising_lib
from udp_jax.objectives import latent
from udp_jax.ops import samplers, schedules, timesteps
from udp_jax.ops.keys import example_keys, normal_each, split_each

KEYS = example_keys(jax.random.key(3), 1, np.arange(4))
PARAMS = {"mean": jnp.full((4, 4, 3), 0.2), "log_spread": jnp.array([-1.0, -0.5, 0.0])}
PROBS = timesteps.uniform(50)


@pytest.fixture(scope="module")
def images():
  """Six pictures of noise, in [0, 1]."""
  return np.random.default_rng(0).uniform(0.1, 0.9, size=(4, 8, 8, 3)).astype(np.float32)


def averages(images):
  """Means of 2x2 pixels on [-1, 1], float64."""
  images = np.asarray(images, np.float64)
  return 2 * images.reshape(len(images), 4, 2, 4, 2, 3).mean((2, 4)) - 1


def spread_back(latents):
  """The transpose of `averages`: what a gradient of latents is in pixels."""
  return 2 / 4 * np.repeat(np.repeat(latents, 2, axis=1), 2, axis=2)


def batch(images, reference=None):
  levels = np.round(255 * images).astype(np.uint8)
  return Batch(levels, np.arange(len(images)), np.ones(len(images)), reference=reference)


def gradient(objective, images, cond=None, params=PARAMS):
  return jax.jit(jax.grad(lambda x: objective(params, x, cond, KEYS)[0].sum()))(images)


# ---- distances ----


@pytest.mark.parametrize("target", ["zero", "picture"])
def test_latent_distance(target, images, latent_model):
  picture = None if target == "zero" else images[3]
  away = averages(images[:3]) - (0 if picture is None else averages(picture[None]))
  squares = np.square(away).sum((1, 2, 3))
  expected = {"norm": np.sqrt(squares), "sum": squares, "mean": squares / 48}
  for reduction, values in expected.items():
    objective = latent.latent_distance(latent_model, picture, reduction=reduction)
    losses, _ = jax.jit(objective)(PARAMS, images[:3], None, KEYS[:3])
    np.testing.assert_allclose(losses, values, rtol=1e-5)
  objective = latent.latent_distance(latent_model, picture)
  direction = away / np.sqrt(squares)[:, None, None, None]
  total = lambda x: objective(PARAMS, x, None, KEYS[:3])[0].sum()
  found = jax.jit(jax.grad(total))(images[:3])
  np.testing.assert_allclose(found, spread_back(direction), rtol=1e-4, atol=1e-7)


def test_a_norm_of_zero_has_a_gradient_of_zero(images, latent_model):
  objective = latent.latent_distance(latent_model, images[0])
  # Not compiled: there the two encodings may be rounded differently, and not be equal.
  found = jax.grad(lambda x: objective(PARAMS, x, None, KEYS)[0].sum())(jnp.asarray(images))
  np.testing.assert_array_equal(found[0], 0)
  assert np.isfinite(found).all()


def test_latents_are_drawn_where_asked(images, latent_model):
  drawn = latent.latent_distance(latent_model, None, reduction="sum", sampled=True)
  latents = averages(images) + 0.05 * np.asarray(normal_each(KEYS, (4, 4, 3)))
  losses, _ = drawn(PARAMS, images, None, KEYS)
  np.testing.assert_allclose(losses, np.square(latents).sum((1, 2, 3)), rtol=1e-5)


def test_distances_to_pictures_of_their_own(images, latent_model):
  data = batch(images, reference=np.round(255 * images[::-1]).astype(np.uint8))
  moved = np.clip(images + 0.03, 0, 1)
  to_clean = latent.latent_distance_within(latent_model, "clean", reduction="mean")
  losses, _ = to_clean(PARAMS, moved, data, KEYS)
  away = averages(moved) - averages(data.images / 255)
  np.testing.assert_allclose(losses, np.square(away).mean((1, 2, 3)), rtol=1e-4)
  to_style = latent.latent_distance_within(latent_model, "reference", reduction="mean")
  losses, _ = to_style(PARAMS, moved, data, KEYS)
  away = averages(moved) - averages(data.reference / 255)
  np.testing.assert_allclose(losses, np.square(away).mean((1, 2, 3)), rtol=1e-4)
  with pytest.raises(ConfigError, match="'reference' needs reference pictures"):
    to_style(PARAMS, moved, batch(images), KEYS)


def test_unknown_names_are_refused(latent_model):
  with pytest.raises(ConfigError, match="unknown reduction 'max'; known: norm, sum, mean"):
    latent.latent_distance(latent_model, None, reduction="max")
  with pytest.raises(ConfigError, match="a distance to 'dirty' is not known"):
    latent.latent_distance_within(latent_model, "dirty")


def test_consistency_is_what_the_autoencoder_loses(images, latent_model, gaussian_model):
  objective = latent.consistency(latent_model)
  mean = np.repeat(np.repeat((averages(images) + 1) / 2, 2, axis=1), 2, axis=2)
  losses, _ = jax.jit(objective)(PARAMS, images, None, KEYS)
  np.testing.assert_allclose(losses, np.square(2 * (images - mean)).mean((1, 2, 3)), rtol=1e-4)
  # The loss is a projection's, so its gradient is twice what is lost.
  expected = 2 * 4 * (images - mean) / (8 * 8 * 3)
  np.testing.assert_allclose(gradient(objective, images), expected, rtol=1e-4, atol=1e-7)
  with pytest.raises(ConfigError, match="a consistency term needs a latent diffusion model"):
    latent.consistency(gaussian_model)


def test_what_is_seen_beyond_a_budget(images):
  distance = PerceptualDistance(
    "stub", "Stub", {"gain": 3.0}, lambda p, x, y: p["gain"] * jnp.abs(x - y).max((1, 2, 3)), 1, ""
  )
  data = batch(images)
  moved = data.images / np.float32(255) + np.array([0.0, 0.01, 0.02, 0.05])[:, None, None, None]
  losses, aux = latent.seen(distance, 0.05)(None, moved, data, KEYS)
  np.testing.assert_allclose(losses, [0, 0, 0.01, 0.1], atol=1e-6)
  np.testing.assert_allclose(aux["perceptual"], [0, 0.03, 0.06, 0.15], atol=1e-6)


# ---- score distillation ----


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_sds_gradient_is_the_residual_through_the_encoder(images, latent_model, prediction_type):
  schedule = latent_model.schedule._replace(prediction_type=prediction_type)
  model = latent_model._replace(schedule=schedule)
  objective = latent.sds(model, PROBS)
  losses, aux = jax.jit(objective)(PARAMS, images, None, KEYS)
  key_t, key_noise, key_encode, _ = split_each(KEYS, 4)
  x0 = model.encode(PARAMS, jnp.asarray(images), key_encode)
  t = jax.vmap(lambda key: timesteps.sample(key, PROBS))(key_t)
  noise = normal_each(key_noise, x0.shape[1:])
  x_t = schedules.add_noise(schedule, x0, noise, t)
  prediction = np.asarray(model.apply(PARAMS, x_t, t), np.float64)
  if prediction_type == "v_prediction":
    abar = np.asarray(schedule.alphas_cumprod, np.float64)[t][:, None, None, None]
    prediction = np.sqrt(abar) * prediction + np.sqrt(1 - abar) * np.asarray(x_t)
  residual = prediction - np.asarray(noise)
  np.testing.assert_array_equal(aux["timesteps"], t)
  np.testing.assert_allclose(losses, np.square(residual).mean((1, 2, 3)), rtol=1e-4)
  found = gradient(objective, images)
  np.testing.assert_allclose(found, spread_back(residual), rtol=1e-3, atol=1e-5)
  assert np.abs(found).max() > 0.1


def test_sds_has_the_value_and_not_the_gradient_of_the_denoising_loss(images, latent_model):
  distilled = latent.sds(latent_model, PROBS)
  denoising = denoising_lib.denoising(latent_model, PROBS)
  np.testing.assert_allclose(
    jax.jit(distilled)(PARAMS, images, None, KEYS)[0],
    jax.jit(denoising)(PARAMS, images, None, KEYS)[0],
    rtol=1e-5,
  )
  ratio = gradient(distilled, images) / gradient(denoising, images)
  assert ratio.std() > 0.1 * abs(ratio.mean())


def test_sds_does_not_differentiate_the_denoiser(images, latent_model):
  @jax.custom_jvp
  def opaque(x_t):
    return x_t

  @opaque.defjvp
  def refuse(primals, tangents):
    raise AssertionError("the denoiser was differentiated")

  def apply(params, x_t, t, cond=None, keys=None):
    return latent_model.apply(params, opaque(x_t), t, cond)

  gradient(latent.sds(latent_model._replace(apply=apply), PROBS), images)


# ---- through a sampler ----


def test_through_sampler_is_a_chain_of_ddim_steps(images, latent_model):
  target = np.full((8, 8, 3), 0.5, np.float32)
  objective = latent.through_sampler(latent_model, target, num_steps=4, strength=0.75)
  losses, _ = jax.jit(objective)(PARAMS, images, None, KEYS)

  key_encode, key_noise, key_steps = split_each(KEYS, 3)
  x0 = latent_model.encode(PARAMS, jnp.asarray(images), key_encode)
  schedule = latent_model.schedule
  predict = jax.jit(lambda x, t: latent_model.apply(PARAMS, x, t))
  # 50 steps in strides of 12, with the offset of 1; three quarters of them.
  x = schedules.add_noise(schedule, x0, normal_each(key_noise, (4, 4, 3)), 25)
  for t in (25, 13, 1):
    noise = normal_each(jax.vmap(lambda key, t=t: jax.random.fold_in(key, t))(key_steps), (4, 4, 3))
    prediction = predict(x, jnp.full((4,), t))
    x = samplers.ddim_step(
      schedule,
      prediction,
      x,
      t,
      t - 12,
      noise=noise,
      options=samplers.DDIM(1.0, clip_sample=False, set_alpha_to_one=False),
    )
  made = np.asarray(latent_model.decode(PARAMS, x, clip=False), np.float64)
  expected = np.sqrt(np.square(2 * (made - 0.5)).sum((1, 2, 3)))
  np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_through_sampler_gradient_against_finite_differences(images, latent_model):
  target = np.zeros((8, 8, 3), np.float32)
  objective = latent.through_sampler(latent_model, target)

  @jax.jit
  def total(x):
    return objective(PARAMS, x, None, KEYS)[0].sum()

  direction = np.random.default_rng(1).normal(size=images.shape).astype(np.float32)
  step = 1e-2
  numeric = (total(images + step * direction) - total(images - step * direction)) / (2 * step)
  exact = np.sum(np.asarray(jax.jit(jax.grad(total))(images)) * direction)
  assert abs(exact) > 0.01
  np.testing.assert_allclose(exact, numeric, rtol=2e-2)


def test_through_sampler_guides_between_texts(images, latent_model):
  """The prediction moves by what `cond` says; guidance multiplies the difference."""

  def apply(params, x_t, t, cond=None, keys=None):
    return latent_model.apply(params, x_t, t) + cond[:, :1, 0][..., None, None]

  def embed(params, ids):
    return 0.1 * ids[..., None].astype(jnp.float32)

  model = latent_model._replace(apply=apply, embed=embed)
  target = np.full((8, 8, 3), 0.5, np.float32)

  def losses(ids, **options):
    objective = latent.through_sampler(model, target, **options)
    return jax.jit(objective)(PARAMS, images, jnp.full((4, 2), ids, jnp.int32), KEYS)[0]

  # From 1, three times the way to 2, is 4.
  guided = losses(2, guidance_scale=3.0, uncond_ids=[1, 1])
  np.testing.assert_allclose(guided, losses(4), rtol=1e-4)
  assert np.abs(guided - losses(2)).min() > 1e-3
  with pytest.raises(ConfigError, match="needs uncond_ids: the empty prompt's token ids"):
    latent.through_sampler(model, target, guidance_scale=7.5)


def test_through_sampler_inpaints_where_there_is_a_mask(images, latent_model):
  """What is hidden must not matter, and the U-Net is told of the rest."""

  def apply(params, x_t, t, cond=None, keys=None):
    assert set(cond) == {"text", "mask", "masked_latents"}
    return latent_model.apply(params, x_t, t) - cond["masked_latents"] + cond["mask"]

  model = latent_model._replace(apply=apply)
  mask = np.zeros((4, 4, 4, 1), np.float32)
  mask[:, 1:3, 1:3] = 1
  cond = {"text": jnp.zeros((4, 1, 1)), "mask": jnp.asarray(mask)}
  objective = latent.through_sampler(model, np.zeros((8, 8, 3), np.float32))
  found = np.abs(gradient(objective, images, cond))
  hidden = np.repeat(np.repeat(mask[..., 0], 2, axis=1), 2, axis=2) > 0
  np.testing.assert_array_equal(found[hidden], 0)
  # The stand-in sees each place by itself: where the picture is kept, all of it counts.
  assert (found[~hidden] > 0).all()


def test_steps_that_do_not_fit_are_refused(latent_model):
  target = np.zeros((8, 8, 3), np.float32)
  for options in ({"num_steps": 60}, {"strength": 0.0}, {"strength": 0.1}):
    with pytest.raises(ConfigError, match="num_steps|strength"):
      latent.through_sampler(latent_model, target, **options)


def test_pixel_models_are_told_apart(gaussian_model, latent_model):
  latent.require_latent(latent_model, "this")
  with pytest.raises(ConfigError, match="this needs a latent diffusion model: this one works on"):
    latent.require_latent(gaussian_model, "this")
