"""The autoencoder's stage, on functions whose results are known beforehand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.studies.tiny_ldm import autoencoder


class _Codec:
  """Keeps every other pixel: a stand-in for an autoencoder whose errors can be worked out."""

  def __init__(self, logvar: float = -30.0):
    self.logvar = logvar

  def apply(self, variables, x, method):
    del variables
    if method == "encode":
      mean = x[:, ::2, ::2]
      return mean, jnp.full_like(mean, self.logvar)
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def _loss(pictures, codec=None, **weights):
  objective = autoencoder.reconstruction(codec or _Codec(), **weights)
  return objective({}, jnp.asarray(pictures), None, jax.random.split(jax.random.key(0), 1))


def test_reconstruction_loss_of_known_errors() -> None:
  flat = np.full((1, 4, 4, 3), 0.75, np.float32)  # 0.5 in the model's range
  losses, aux = _loss(flat, gradient_weight=1.0, kl_weight=0.0)
  np.testing.assert_allclose(losses, 0.0, atol=1e-5)
  # KL of N(0.5, exp(-30)) from N(0, 1).
  np.testing.assert_allclose(aux["kl"], 0.5 * (0.25 - 1.0 + 30.0), rtol=1e-5)
  weighted, _ = _loss(flat, gradient_weight=1.0, kl_weight=0.1)
  np.testing.assert_allclose(weighted, 0.1 * aux["kl"], rtol=1e-4)
  # Columns of 0 and 1: every second column is off by 2, every difference along a row as well.
  stripes = np.zeros((1, 4, 4, 3), np.float32)
  stripes[:, :, 1::2] = 1.0
  losses, aux = _loss(stripes, gradient_weight=0.5, kl_weight=0.0)
  np.testing.assert_allclose(aux["l1"], 1.0, atol=1e-5)
  np.testing.assert_allclose(losses, 1.0 + 0.5 * 2.0, atol=1e-4)


def test_scaling_factor_gives_latents_unit_variance() -> None:
  generator = np.random.default_rng(0)
  mean = 3.0 * generator.normal(size=(50, 8, 8, 2)) + 1.0
  moments = np.concatenate([mean, np.full_like(mean, np.log(4.0))], -1).astype(np.float32)
  latents = mean + 2.0 * generator.normal(size=mean.shape)
  factor = autoencoder.scaling_factor(moments)
  assert np.std(factor * latents) == pytest.approx(1.0, abs=0.02)


def test_batches_of_one_size_whatever_the_count() -> None:
  sizes = set()

  def double(part):
    sizes.add(len(part))
    return 2 * part

  rows = np.arange(7)
  np.testing.assert_array_equal(autoencoder._by_batches(double, rows, 3), 2 * rows)
  assert sizes == {3}
