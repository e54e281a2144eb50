"""Objectives put together, against losses worked out by hand with the same keys."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tests.objectives.by_hand import KEYS, PARAMS, PROBS, brightness, by_hand, linear_model
from udp_jax.objectives import denoising as denoising_lib
from udp_jax.objectives.base import averaged, negate, weighted
from udp_jax.objectives.denoising import denoising, flipped

BRIGHT = jnp.arange(1.0, 4.0).reshape(3, 1, 1, 1) * jnp.ones((3, 2, 2, 1))
THREE = jax.random.split(jax.random.key(0), 3)


def test_the_gradient_of_a_mean_is_the_mean_of_gradients() -> None:
  def scaled(params, images, cond, keys):
    drawn = jax.vmap(lambda key: jax.random.uniform(key))(keys)
    return drawn * jnp.sum(images**2, (1, 2, 3)), {"drawn": drawn}

  def total(images):
    losses, _ = averaged(scaled, 3)(None, images, None, THREE)
    return losses.sum(), losses

  gradient, losses = jax.grad(total, has_aux=True)(BRIGHT)
  share = losses / jnp.sum(BRIGHT**2, (1, 2, 3))
  np.testing.assert_allclose(gradient, 2 * share.reshape(3, 1, 1, 1) * BRIGHT, rtol=1e-5)


def test_negate(images):
  plain, aux = brightness(None, images, None, KEYS)
  losses, negated_aux = negate(brightness)(None, images, None, KEYS)
  np.testing.assert_array_equal(losses, -plain)
  np.testing.assert_array_equal(negated_aux["right"], aux["right"])


def test_weighted(images):
  denoising = denoising_lib.denoising(linear_model(), PROBS)
  both = weighted((2.0, denoising), (-3.0, brightness))
  losses, aux = jax.jit(both)(PARAMS, images, None, KEYS)
  first = [jax.random.split(key, 2)[0] for key in KEYS]
  expected = 2 * by_hand(images, first)[0] - 3 * images[:, :, 0].mean((1, 2))
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  assert set(aux) == {"timesteps", "right"}


def test_a_single_weighted_term_draws_with_the_keys_themselves(images):
  def spy(params, images, cond, keys):
    return images.mean((1, 2, 3)), {"keys": jax.random.key_data(keys)}

  losses, aux = weighted((2.0, spy))(None, images, None, KEYS)
  np.testing.assert_array_equal(aux["keys"], jax.random.key_data(KEYS))
  np.testing.assert_allclose(losses, 2 * images.mean((1, 2, 3)), rtol=1e-6)


def test_averaged_is_the_mean_over_keys_of_its_own(images):
  def draw(params, images, cond, keys):
    return jax.vmap(lambda key: jax.random.normal(key))(keys), {"keys": jax.random.key_data(keys)}

  assert averaged(draw, 1) is draw
  losses, aux = jax.jit(averaged(draw, 64))(None, images, None, KEYS)
  assert losses.shape == (6,) and 0 < np.std(losses) < 5 / np.sqrt(64)
  assert not np.array_equal(aux["keys"], jax.random.key_data(KEYS))


def test_a_sum_of_losses_gives_gradients_that_know_no_batch(images):
  objective = flipped(denoising(linear_model(), PROBS))
  gradient = jax.jit(jax.grad(lambda x, keys: objective(PARAMS, x, None, keys)[0].sum()))
  together = gradient(images, KEYS)
  assert np.abs(together).min(axis=(1, 2, 3)).max() > 0
  for i in (0, 4):
    # Elsewhere in the batch, beside other pictures.
    order = np.roll(np.arange(6), i + 1)
    others = np.where(np.arange(6)[:, None, None, None] == 0, images[order], 0.5)
    np.testing.assert_array_equal(gradient(others, KEYS[order])[0], together[order[0]])
