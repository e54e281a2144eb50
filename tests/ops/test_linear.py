"""Matrix products against float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from udp_jax.ops.linear import add_bias, asked_precision, dense


def draw(dtype):
  generator = np.random.default_rng(1)
  x = generator.normal(size=(2, 3, 5)).astype(np.float32)
  kernel = generator.normal(size=(5, 4)).astype(np.float32)
  return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype), jnp.arange(4, dtype=dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)])
def test_values_and_gradients(dtype, tolerance):
  x, kernel, bias = draw(dtype)
  exact = [np.asarray(v, np.float64) for v in (x, kernel, bias)]
  out, pullback = jax.vjp(dense, x, kernel, bias)
  cotangent = jnp.ones_like(out)
  dx, dkernel, dbias = pullback(cotangent)
  assert {v.dtype for v in (out, dx, dkernel, dbias)} == {jnp.dtype(dtype)}
  scale = {"rtol": tolerance, "atol": 4 * tolerance}
  np.testing.assert_allclose(np.asarray(out, np.float64), exact[0] @ exact[1] + exact[2], **scale)
  ones = np.ones(out.shape)
  np.testing.assert_allclose(np.asarray(dx, np.float64), ones @ exact[1].T, **scale)
  want = np.einsum("abk,abn->kn", exact[0], ones)
  np.testing.assert_allclose(np.asarray(dkernel, np.float64), want, **scale)


def test_numerical_derivatives_in_double_precision():
  with jax.enable_x64(True):
    check_grads(dense, draw(jnp.float64), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_sums_are_wider_than_bfloat16():
  # 1 + 256 * 2**-9: lost whole, were the sum kept in bfloat16.
  x = jnp.concatenate([jnp.ones(1), jnp.full(256, 2.0**-9)]).astype(jnp.bfloat16)[None]
  assert float(dense(x, jnp.ones((257, 1), jnp.bfloat16))[0, 0]) == 1.5


@pytest.mark.parametrize("shape", [(5,), (1, 5), (2, 1, 5), (2, 3, 5), (1, 1, 1), (2, 3, 1), ()])
def test_a_bias_of_any_shape(shape):
  with jax.enable_x64(True):
    generator = np.random.default_rng(2)
    x, bias = generator.normal(size=(2, 3, 5)), generator.normal(size=shape)
    np.testing.assert_array_equal(add_bias(x, bias), x + bias)
    check_grads(add_bias, (x, bias), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_the_gradient_of_a_bias_is_wider_than_bfloat16():
  x = jnp.zeros((4096, 1), jnp.bfloat16)
  gradient = jax.grad(lambda b: add_bias(x, b).astype(jnp.float32).sum())(jnp.zeros(1, x.dtype))
  # 256 + 1 is 256 in bfloat16.
  assert gradient.dtype == x.dtype and float(gradient[0]) == 4096.0


@pytest.mark.parametrize("precision", ["highest", "tensorfloat32", "BF16_BF16_F32"])
def test_the_gradient_keeps_the_precision_of_the_forward_pass(precision: str) -> None:
  def loss(x, kernel):
    with jax.default_matmul_precision(precision):
      return dense(x, kernel, wide=True).sum()

  x, kernel, _ = draw(jnp.float32)
  text = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(x, kernel).as_text()
  lines = [line for line in text.splitlines() if "dot_general" in line]
  sign = {"highest": "HIGHEST", "tensorfloat32": "HIGH", "BF16_BF16_F32": "lhs_precision_type"}
  assert len(lines) == 3 and all(sign[precision] in line for line in lines)
  assert asked_precision() is None  # Outside of the context.
