"""Winograd's convolution against XLA's own, its gradients too."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.ops import winograd


def _reference(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision=jax.lax.Precision.HIGHEST,
  )  # fmt: skip


def _inputs(height: int, width: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  generator = np.random.default_rng(height)
  shapes = (2, height, width, 3), (3, 3, 3, 5), (2, height, width, 5)
  x, kernel, g = (jnp.asarray(generator.normal(size=s), jnp.float32) for s in shapes)
  return x, kernel, g


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 7)])
def test_results_and_gradients(height: int, width: int) -> None:
  x, kernel, g = _inputs(height, width)
  found, pull = jax.vjp(winograd.convolve, x, kernel)
  expected, reference_pull = jax.vjp(_reference, x, kernel)
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
  for mine, theirs in zip(pull(g), reference_pull(g), strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-3)


def test_held_filters_give_the_same_and_no_gradient() -> None:
  x, kernel, g = _inputs(6, 9)
  filters = winograd.transform_filters(kernel)
  assert filters.forward.shape == filters.backward.shape == (36, 3, 5)
  found, pull = jax.vjp(winograd.convolve_held, x, filters)
  np.testing.assert_allclose(found, _reference(x, kernel), rtol=1e-3, atol=1e-4)
  dx, dfilters = pull(g)
  _, reference_pull = jax.vjp(_reference, x, kernel)
  np.testing.assert_allclose(dx, reference_pull(g)[0], rtol=1e-3, atol=1e-3)
  assert not any(leaf.any() for leaf in dfilters)


def test_narrow_features_lose_no_more_than_their_own_digits() -> None:
  x, kernel, _ = _inputs(8, 8)
  narrow = winograd.convolve(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
  assert narrow.dtype == jnp.bfloat16
  exact = _reference(
    x.astype(jnp.bfloat16).astype(jnp.float32), kernel.astype(jnp.bfloat16).astype(jnp.float32)
  )
  error = jnp.abs(narrow.astype(jnp.float32) - exact)
  assert float(error.max()) < 0.02 * float(jnp.abs(exact).max())
