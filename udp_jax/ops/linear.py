"""Matrix products that accumulate in float32 and return the dtype of their input.

XLA's CPU backend multiplies bfloat16 matrices at full speed only when it may return float32; asked
for bfloat16 it converts the inputs first, at less than half the speed. The gradients are written
out because autodiff would multiply a float32 cotangent with bfloat16 weights, which converts them
too.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def dense(
  x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, *, wide: bool | None = None
) -> jax.Array:
  """Features (..., K) times a kernel (K, N), plus a bias (N,).

  Args:
    x: (..., K).
    kernel: (K, N).
    bias: (N,), or None.
    wide: whether products return float32 and are rounded after; None decides by backend. TPUs
      would move the wide results through their memory, and accumulate in float32 anyway.

  Returns:
    (..., N) in the dtype of `x`.
  """
  if wide is None:
    wide = jax.default_backend() == "cpu"
  if wide:
    out = _matmul(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[1])
  else:
    out = x @ kernel
  return out if bias is None else add_bias(out, bias)


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
  """Sum whose gradient for the bias is added up in float32 or wider.

  As autodiff writes it, bfloat16 would be added up in bfloat16; XLA's CPU backend takes ten times
  as long for that.

  Args:
    x: (..., N).
    bias: of the same dtype, with as many or fewer axes, each as long as that of `x` or 1.

  Returns:
    The shape and dtype of `x`.
  """
  return x + bias


def _add_forward(x: jax.Array, bias: jax.Array):
  return add_bias(x, bias), bias


def _add_backward(bias: jax.Array, g: jax.Array):
  missing = g.ndim - bias.ndim
  axes = [*range(missing)]
  axes += [missing + i for i, size in enumerate(bias.shape) if size == 1 != g.shape[missing + i]]
  summed = jnp.sum(g, axes, dtype=jnp.promote_types(g.dtype, jnp.float32))
  return g, summed.astype(bias.dtype).reshape(bias.shape)


add_bias.defvjp(_add_forward, _add_backward)


def _product(x: jax.Array, y: jax.Array, axes: tuple[int, int], dtype) -> jax.Array:
  wide = jnp.promote_types(x.dtype, jnp.float32)
  dims = (((axes[0],), (axes[1],)), ((), ()))
  return lax.dot_general(x, y, dims, preferred_element_type=wide).astype(dtype)


@jax.custom_vjp
def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return _product(x, kernel, (1, 0), x.dtype)


def _forward(x: jax.Array, kernel: jax.Array):
  return _matmul(x, kernel), (x, kernel)


def _backward(saved, g: jax.Array):
  x, kernel = saved
  return _product(g, kernel, (1, 1), x.dtype), _product(x, g, (0, 0), kernel.dtype)


_matmul.defvjp(_forward, _backward)
