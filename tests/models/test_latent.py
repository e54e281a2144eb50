"""Latent diffusion as pure functions: ranges, draws, conditions, held parameters."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.errors import ConfigError
from udp_jax.models import conditioning, latent, pipeline
from udp_jax.models.base import Held
from udp_jax.models.sd_unet import UNet2DCondition
from udp_jax.ops.keys import normal_each

TIMESTEPS = np.array([3, 600, 900], np.int32)
KEYS = jax.random.split(jax.random.key(4), 3)


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).uniform(size=(3, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def ids(tiny_pipeline):
  return tiny_pipeline.tokenizer(["a cat", "a dog by the sea", ""])


class Results(NamedTuple):
  x0: jax.Array
  pictures: jax.Array
  cond: jax.Array
  prediction: jax.Array


@pytest.fixture(scope="module")
def run(tiny_pipeline, images, ids):
  """Everything that the model does, compiled once for parameters of each kind."""
  model = tiny_pipeline.model

  @jax.jit
  def compute(params):
    x0 = model.encode(params, images, KEYS)
    prediction = model.apply(params, x0, TIMESTEPS, jnp.asarray(ids))
    return Results(x0, model.decode(params, x0), model.embed(params, ids), prediction)

  return compute


@pytest.fixture(scope="module")
def results(run, tiny_pipeline):
  return run(tiny_pipeline.params)


def test_shapes_and_ranges(tiny_pipeline, results, images):
  model = tiny_pipeline.model
  assert model.shape == results.x0.shape[1:] == (8, 8, 4)
  assert model.image_shape == results.pictures.shape[1:] == images.shape[1:]
  assert results.prediction.shape == results.x0.shape
  assert results.cond.shape == (3, 77, 16)
  assert all(leaf.dtype == jnp.float32 for leaf in results)
  assert 0 <= results.pictures.min() < results.pictures.max() <= 1


def test_init_makes_what_apply_takes(tiny_pipeline):
  shapes = jax.eval_shape(tiny_pipeline.model.init, jax.random.key(0))
  assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, tiny_pipeline.params)
  assert sorted(shapes) == ["text_encoder", "unet", "vae"]


def test_the_posterior_is_drawn_by_picture_and_scaled(tiny_pipeline, results, images):
  configs, params = tiny_pipeline.configs, tiny_pipeline.params
  mean_of = pipeline.build_model(configs, tiny_pipeline.scheduler, deterministic=True)
  module = pipeline.AutoencoderKL(configs["vae"])

  @jax.jit
  def moments(params):
    return module.apply({"params": params["vae"]}, 2 * images - 1, method="encode")

  mean, logvar = moments(params)
  scale = configs["vae"].scaling_factor
  expected = scale * (mean + jnp.exp(logvar / 2) * normal_each(KEYS, (8, 8, 4)))
  np.testing.assert_allclose(results.x0, expected, rtol=1e-5, atol=1e-6)
  x0 = jax.jit(mean_of.encode)(params, images, KEYS[::-1])
  np.testing.assert_allclose(x0, scale * mean, rtol=1e-5, atol=1e-6)
  assert mean_of.posterior is not None
  found, spread = jax.jit(mean_of.posterior)(params, images)
  np.testing.assert_allclose(found, scale * mean, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(jnp.exp(spread / 2), scale * jnp.exp(logvar / 2), rtol=1e-5)
  assert "random_bits" not in str(jax.make_jaxpr(mean_of.encode)(params, images, KEYS))


def test_decode_undoes_the_scaling(tiny_pipeline, results):
  module = pipeline.AutoencoderKL(tiny_pipeline.configs["vae"])
  latents = results.x0 / tiny_pipeline.configs["vae"].scaling_factor
  variables = {"params": tiny_pipeline.params["vae"]}
  decoded = jax.jit(lambda z: module.apply(variables, z, method="decode"))(latents)
  expected = jnp.clip((decoded + 1) / 2, 0, 1)
  np.testing.assert_allclose(results.pictures, expected, rtol=1e-4, atol=1e-5)


def test_token_ids_are_embedded_inside(tiny_pipeline, results):
  model, params = tiny_pipeline.model, tiny_pipeline.params
  apply = jax.jit(model.apply)
  got = apply(params, results.x0, TIMESTEPS, results.cond)
  np.testing.assert_allclose(got, results.prediction, rtol=1e-4, atol=1e-5)
  other = apply(params, results.x0, TIMESTEPS, results.cond[::-1])
  assert np.abs(other - got)[0].max() > 1e-4  # The condition matters.


@pytest.mark.slow  # Values of the U-Net alone: test_sd_unet.py.
def test_held_parameters_compute_the_same(run, results, tiny_pipeline):
  held = jax.jit(tiny_pipeline.model.hold)(tiny_pipeline.params)
  for got, expected in zip(run(held), results, strict=True):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_what_is_held(tiny_pipeline):
  """Shapes only: nothing is compiled."""
  held = jax.eval_shape(tiny_pipeline.model.hold, tiny_pipeline.params)
  assert isinstance(held, Held) and held is tiny_pipeline.model.hold(held)
  # Filters of the VAE, where `ops.conv` has any to prepare (on a CPU).
  if jax.default_backend() == "cpu":
    assert set(held.prepared["vae"]) == {"encoder", "decoder"}


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="filters are prepared on CPUs")
def test_filters_of_a_deeper_unet_are_held(make_tiny_pipeline):
  two_levels = make_tiny_pipeline(
    block_out_channels=(8, 16),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
  )
  wide = jax.eval_shape(two_levels.model.hold, two_levels.params)
  assert jax.tree.leaves(wide.prepared["unet"])


def test_held_parameters_are_in_the_dtype_of_the_computation(tiny_pipeline):
  model = pipeline.build_model(
    tiny_pipeline.configs, tiny_pipeline.scheduler, {"dtype": "bfloat16"}
  )
  held = jax.eval_shape(model.hold, tiny_pipeline.params)
  for leaf in jax.tree.leaves(held.params):
    assert leaf.dtype == (jnp.bfloat16 if leaf.ndim > 1 else jnp.float32)


def test_frozen_parts_can_be_kept_narrow(tiny_pipeline):
  cast = latent.cast_parts(tiny_pipeline.params, jnp.bfloat16)
  for part, tree in cast.items():
    for leaf in jax.tree.leaves(tree):
      narrow = part != "unet" and leaf.ndim > 1
      assert leaf.dtype == (jnp.bfloat16 if narrow else jnp.float32)


def loss_of(made, slices):
  """Sum of squares of the pictures' latents, and the latents; 0 slices for one of all."""
  options = {"vae_slices": slices} if slices else {}
  model = pipeline.build_model(made.configs, made.scheduler, options)

  def loss(x):
    x0 = model.encode(made.params, x, KEYS)
    return jnp.sum(jnp.square(x0)), x0

  return loss


def test_slices_change_memory_and_not_results(tiny_pipeline, results, images):
  x = jnp.asarray(images)
  programs = {slices: str(jax.make_jaxpr(loss_of(tiny_pipeline, slices))(x)) for slices in (0, 2)}
  # Three pictures do not divide into two slices or four: one and three.
  assert "scan" not in programs[0] and "scan" not in programs[2]
  traced = jax.jit(loss_of(tiny_pipeline, 4)).trace(x)
  assert "scan" in str(traced.jaxpr)
  _, sliced = traced.lower().compile()(x)
  np.testing.assert_allclose(sliced, results.x0, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_slices_change_no_gradients(tiny_pipeline, images):
  (whole, sliced) = (
    jax.jit(jax.grad(loss_of(tiny_pipeline, slices), has_aux=True))(images)[0] for slices in (0, 4)
  )
  assert np.isfinite(whole).all() and np.abs(whole).min(-1).max() > 0
  np.testing.assert_allclose(sliced, whole, rtol=1e-3, atol=1e-5 * np.abs(whole).max())


@pytest.mark.slow
def test_inpainting_sees_the_mask_and_what_is_kept(make_tiny_pipeline, results):
  made = make_tiny_pipeline(in_channels=9)
  mask = jnp.zeros((3, 8, 8, 1)).at[:, 2:5].set(1.0)
  cond = {"text": results.cond, "mask": mask, "masked_latents": results.x0}
  x_t = results.x0[::-1]
  unet = UNet2DCondition(made.configs["unet"])

  @jax.jit
  def both(params):
    joined = jnp.concatenate([x_t, mask, results.x0], -1)
    direct = unet.apply({"params": params["unet"]}, joined, TIMESTEPS, results.cond)
    return made.model.apply(params, x_t, TIMESTEPS, cond), direct

  np.testing.assert_allclose(*both(made.params), rtol=1e-5, atol=1e-6)
  with pytest.raises(ConfigError, match="9 channels and was given 4; it is an inpainting model"):
    made.model.apply(made.params, x_t, TIMESTEPS, results.cond)


def test_a_missing_condition_is_named(tiny_pipeline, results):
  with pytest.raises(ConfigError, match="is conditioned"):
    tiny_pipeline.model.apply(tiny_pipeline.params, results.x0, TIMESTEPS)
  configs = {k: v for k, v in tiny_pipeline.configs.items() if k != "text_encoder"}
  model = pipeline.build_model(configs, tiny_pipeline.scheduler)
  assert model.embed is None
  with pytest.raises(ConfigError, match="no text encoder"):
    model.apply(tiny_pipeline.params, results.x0, TIMESTEPS, jnp.zeros((3, 77), jnp.int32))


@pytest.mark.parametrize(
  "part, changes, message",
  [
    ("vae", {"latent_channels": 8}, r"\(latent_channels=8\) do not belong together"),
    ("unet", {"cross_attention_dim": 32}, "embeddings of 32 values, the text encoder makes 16"),
    ("unet", {"in_channels": 7}, "in_channels=7"),
  ],
)
def test_parts_of_different_models_are_refused(tiny_pipeline, part, changes, message):
  configs = dict(tiny_pipeline.configs)
  fields = {k: v for k, v in vars(configs[part]).items()} | changes
  configs[part] = type(configs[part])(**fields)
  with pytest.raises(ConfigError, match=message):
    pipeline.build_model(configs, tiny_pipeline.scheduler)


def test_image_sizes_must_divide(tiny_pipeline):
  model = pipeline.build_model(tiny_pipeline.configs, tiny_pipeline.scheduler, image_size=(32, 24))
  assert model.shape == (16, 12, 4) and model.image_shape == (32, 24, 3)
  with pytest.raises(ConfigError, match="15x15 is not a multiple of 2"):
    pipeline.build_model(tiny_pipeline.configs, tiny_pipeline.scheduler, image_size=15)


@pytest.mark.slow
def test_xl_takes_ids_embeddings_and_sizes(tiny_sdxl):
  model, params, ids = tiny_sdxl.model, tiny_sdxl.params, tiny_sdxl.tokenizer(["a cat", ""])
  x_t, timesteps = jnp.full((2, 8, 8, 4), 0.5), TIMESTEPS[:2]
  apply = jax.jit(model.apply)
  cond = jax.jit(model.embed)(params, ids)
  by_ids = apply(params, x_t, timesteps, ids)
  np.testing.assert_allclose(apply(params, x_t, timesteps, cond), by_ids, rtol=1e-4, atol=1e-5)
  # A picture counts as shown as a whole, at the size at hand.
  whole = conditioning.with_sizes(cond, (16, 16))
  np.testing.assert_array_equal(
    apply(params, x_t, timesteps, whole), apply(params, x_t, timesteps, cond)
  )
  cut = conditioning.with_sizes(cond, (64, 32), crop=(8, 0), target=(16, 16))
  assert np.abs(apply(params, x_t, timesteps, cut) - by_ids).max() > 1e-3
  # The two encoders see the padding of their own tokenizers, and both of them count.
  second = tiny_sdxl.tokenizer_2(["a cat", ""])
  encode = jax.jit(pipeline.CLIPTextProjected(tiny_sdxl.configs["text_encoder_2"]).apply)
  text, pooled = encode({"params": params["text_encoder_2"]}, second)
  found = conditioning.unpack(cond, 10)
  np.testing.assert_allclose(found.embeddings[..., 16:], text, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found.pooled, pooled, rtol=1e-4, atol=1e-5)


def test_xl_held_parameters(tiny_sdxl):
  held = jax.eval_shape(tiny_sdxl.model.hold, tiny_sdxl.params)
  assert set(held.params) == {"unet", "vae", "text_encoder", "text_encoder_2"}
  narrow = pipeline.build_model(
    tiny_sdxl.configs, tiny_sdxl.scheduler, {"dtype": "bfloat16", "vae_dtype": "float32"}
  )
  held = jax.eval_shape(narrow.hold, tiny_sdxl.params).params
  dtypes = {
    part: {leaf.dtype for leaf in jax.tree.leaves(held[part]) if leaf.ndim > 1} for part in held
  }
  assert dtypes.pop("vae") == {jnp.dtype("float32")}
  assert set(map(tuple, dtypes.values())) == {(jnp.dtype("bfloat16"),)}


@pytest.mark.parametrize(
  "part, changes, message",
  [
    ("text_encoder_2", None, "only with a second text encoder"),
    ("text_encoder", None, "without a first one"),
    ("text_encoder_2", {"projection_dim": 9}, "of 10 values, the second text encoder makes 9"),
    ("text_encoder_2", {"hidden_size": 24}, "of 28 values, the text encoder makes 40"),
  ],
)
def test_xl_parts_that_do_not_fit(tiny_sdxl, part, changes, message):
  configs = dict(tiny_sdxl.configs)
  config = configs.pop(part)
  if changes is not None:
    configs[part] = dataclasses.replace(config, **changes)
  with pytest.raises(ConfigError, match=message):
    pipeline.build_model(configs, tiny_sdxl.scheduler)
