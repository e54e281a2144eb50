"""Group normalisation and its gradient against a plain two-pass one in double precision."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from udp_jax.ops.norm import group_norm

GROUPS, EPSILON = 3, 1e-5
SHAPE = (2, 5, 4, 12)


def reference(x, scale, bias, *, activation: str):
  """The definition, with autodiff's derivative."""
  grouped = x.reshape(x.shape[0], -1, GROUPS, x.shape[-1] // GROUPS)
  mean = grouped.mean((1, 3), keepdims=True)
  variance = ((grouped - mean) ** 2).mean((1, 3), keepdims=True)
  scale, bias = (v.reshape((1,) * (x.ndim - 1) + v.shape) for v in (scale, bias))
  y = ((grouped - mean) / jnp.sqrt(variance + EPSILON)).reshape(x.shape) * scale + bias
  return y / (1 + jnp.exp(-y)) if activation == "silu" else y


def ours(x, scale, bias, *, activation: str):
  return group_norm(x, scale, bias, num_groups=GROUPS, epsilon=EPSILON, activation=activation)


def draw(shape=SHAPE, mean=0.0, spread=1.0):
  generator = np.random.default_rng(0)
  x = mean + spread * generator.normal(size=shape)
  scale, bias = generator.normal(size=(2, shape[-1]))
  return (x, scale, bias), generator.normal(size=shape)


def with_gradients(function, values, cotangent):
  out, pullback = jax.vjp(function, *values)
  return out, *pullback(cotangent)


def compare(values, cotangent, activation, dtype, tolerances):
  """Largest errors, relative to the largest magnitude, of the output and the three gradients."""
  cast = jax.tree.map(lambda v: np.asarray(v, dtype), (values, cotangent))
  with jax.enable_x64(True):
    # The reference sees exactly the numbers that were rounded to `dtype`.
    exact = jax.tree.map(lambda v: np.asarray(v, np.float64), cast)
    want = jax.jit(
      lambda v, g: with_gradients(lambda *a: reference(*a, activation=activation), v, g)
    )(*exact)
    got = jax.jit(lambda v, g: with_gradients(lambda *a: ours(*a, activation=activation), v, g))(
      *cast
    )
  names = ("output", "dx", "dscale", "dbias")
  for name, actual, expected, tolerance in zip(names, got, want, tolerances, strict=True):
    assert actual.dtype == dtype and actual.shape == expected.shape
    expected = np.asarray(expected)  # Outside of the context JAX would truncate it.
    error = np.max(np.abs(np.asarray(actual, np.float64) - expected)) / np.max(np.abs(expected))
    assert error < tolerance, (name, error)


@pytest.mark.parametrize("activation", ["none", "silu"])
def test_output_and_gradients(activation):
  values, cotangent = draw()
  compare(values, cotangent, activation, np.float64, [1e-13] * 4)
  compare(values, cotangent, activation, np.float32, [2e-6] * 4)
  # Rounding the results alone costs up to 2e-3.
  compare(values, cotangent, activation, jnp.bfloat16, [4e-3] * 4)


@pytest.mark.parametrize(
  ("dtype", "platform", "kept_apart"),
  [
    (jnp.bfloat16, "cuda", [3]),
    (jnp.bfloat16, "tpu", []),
    (jnp.bfloat16, "cpu", []),
    *((jnp.float32, platform, [2]) for platform in ("cuda", "tpu", "cpu")),
  ],
)
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_the_gradient_keeps_no_wide_copy_on_gpus(activation, dtype, platform, kept_apart):
  """A barrier stands before what is computed a second time, so that XLA does not keep it."""
  x, channels = jax.ShapeDtypeStruct(SHAPE, dtype), jax.ShapeDtypeStruct(SHAPE[-1:], dtype)
  gradient = lambda g, *values: jax.vjp(lambda *v: ours(*v, activation=activation), *values)[1](g)
  traced = jax.jit(gradient).trace(x, x, channels, channels)
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  barriers = [line for line in text.splitlines() if "optimization_barrier" in line]
  operands = [line.partition("optimization_barrier ")[2].count("%") for line in barriers]
  assert operands == kept_apart


@pytest.mark.parametrize("activation", ["none", "silu"])
def test_what_gpus_compute_again_is_the_same(activation, monkeypatch):
  again = lambda *values, cuda, default: cuda(*values)
  monkeypatch.setattr(jax.lax, "platform_dependent", again)
  values, cotangent = draw()
  compare(values, cotangent, activation, jnp.bfloat16, [4e-3] * 4)


def test_any_number_of_spatial_axes():
  for shape in [(2, 12), (1, 2, 3, 2, 12)]:
    compare(*draw(shape), "silu", np.float32, [5e-6] * 4)


def test_a_mean_far_above_the_spread():
  # E[x^2] - E[x]^2 would have no digit left: 1e6 against a variance of 1e-2, with 24 bits.
  values, cotangent = draw(mean=1000.0, spread=0.1)
  compare(values, cotangent, "none", np.float32, [3e-3] * 4)


def test_numerical_derivatives_agree():
  with jax.enable_x64(True):
    values, _ = draw((2, 3, 6))
    function = jax.jit(lambda *v: ours(*v, activation="silu"))
    check_grads(function, values, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_images_do_not_depend_on_each_other():
  (x, scale, bias), _ = draw()
  x, scale, bias = (np.asarray(v, np.float32) for v in (x, scale, bias))
  other = np.stack([x[0], 50 * x[1] + 3])
  function = jax.jit(lambda v: ours(v, scale, bias, activation="none"))
  np.testing.assert_array_equal(function(x)[0], function(other)[0])


def test_bfloat16_has_its_statistics_in_single_precision():
  # 12 bits of mean: statistics in bfloat16 (8 bits) would be useless here.
  values, _ = draw((2, 16, 16, 12), mean=16.0, spread=1.0)
  x, scale, bias = (jnp.asarray(v, jnp.bfloat16) for v in values)
  got = jax.jit(lambda *v: ours(*v, activation="none"))(x, scale, bias)
  assert got.dtype == jnp.bfloat16
  with jax.enable_x64(True):
    exact = [np.asarray(v, np.float64) for v in (x, scale, bias)]
    want = reference(*exact, activation="none")
  np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=0.02, rtol=0.01)


def test_errors():
  x, ones = jnp.zeros((1, 4, 4, 6)), jnp.ones(6)
  with pytest.raises(ValueError, match="6 channels cannot be split into 4 groups"):
    group_norm(x, ones, ones, num_groups=4)
  with pytest.raises(ValueError, match="unknown activation 'gelu'; known: none, silu"):
    group_norm(x, ones, ones, num_groups=3, activation="gelu")
