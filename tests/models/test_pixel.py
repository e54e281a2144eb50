"""A U-Net as a diffusion model: ranges, shapes, and what each function depends on."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.models.ddpm_unet import UNet2D
from udp_jax.models.pixel import pixel_diffusion

TIMESTEPS = np.array([3, 40], np.int32)


def test_pixels_are_their_own_code(tiny_model, pictures):
  model = tiny_model.model
  images = pictures[:2] / np.float32(255)
  x0 = model.encode(tiny_model.params, images, None)
  assert x0.shape[1:] == model.shape == (8, 8, 3)
  np.testing.assert_allclose(x0, 2 * images - 1, atol=1e-6)
  np.testing.assert_allclose(model.decode(tiny_model.params, x0), images, atol=1e-6)
  outside = jnp.stack([x0[0] - 3, x0[1] + 3])
  np.testing.assert_array_equal(model.decode(None, outside)[0], 0)
  np.testing.assert_array_equal(model.decode(None, outside)[1], 1)


def test_init_makes_what_apply_takes(tiny_model):
  shapes = jax.eval_shape(tiny_model.model.init, jax.random.key(0))
  assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, tiny_model.params)


def test_dropout_needs_a_key_and_a_rate(tiny_model):
  dropping = dataclasses.replace(tiny_model.config, dropout=0.5)
  model = pixel_diffusion(UNet2D(dropping), tiny_model.model.schedule)
  x_t = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
  keys = jax.random.split(jax.random.key(0), (2, 2))

  apply, values = jax.jit(model.apply), (tiny_model.params, x_t, TIMESTEPS, None)
  plain = apply(*values)
  first, second, again = (apply(*values, key) for key in (*keys, keys[0]))
  assert plain.shape == x_t.shape and plain.dtype == jnp.float32
  np.testing.assert_array_equal(first, again)
  assert np.any(first != second) and np.any(first != plain)
  # A picture's mask is its own: the same key gives the same, whoever is beside it.
  mixed = apply(*values, jnp.stack([keys[0, 0], keys[1, 1]]))
  np.testing.assert_allclose(mixed, jnp.stack([first[0], second[1]]), rtol=1e-5, atol=1e-6)
  # Without a rate the key is not used at all.
  program = jax.make_jaxpr(tiny_model.model.apply)(*values, keys[0])
  assert "random" not in str(program)
