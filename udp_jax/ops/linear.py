"""Matrix products that accumulate in float32 and return the dtype of their input.

XLA's CPU backend multiplies bfloat16 matrices at full speed only if it may return float32; if asked
for bfloat16, it converts the inputs first, at less than half the speed. Gradients are written by
hand because autodiff would multiply a float32 cotangent with bfloat16 weights, which converts them
too.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def dense(
  x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, *, wide: bool | None = None
) -> jax.Array:
  """Multiplies features (..., K) by a kernel (K, N) and adds a bias (N,).

  Args:
    x: (..., K), features.
    kernel: (K, N), weights.
    bias: (N,), or None.
    wide: whether products return float32 and are rounded afterwards; None decides by backend. TPUs
      would move the wide results through memory, and accumulate in float32 anyway.

  Returns:
    (..., N) in the dtype of `x`.

  >>> dense(jnp.ones((2, 3)), jnp.ones((3, 1)), jnp.array([0.5])).tolist()
  [[3.5], [3.5]]
  """
  if wide is None:
    wide = jax.default_backend() == "cpu"
  if wide:
    out = _matmul(x.reshape(-1, x.shape[-1]), kernel, asked_precision())
    out = out.reshape(*x.shape[:-1], kernel.shape[1])
  else:
    out = x @ kernel
  return out if bias is None else add_bias(out, bias)


def asked_precision() -> str | None:
  """Returns the precision of `jax.default_matmul_precision`; None if nothing is asked for.

  A gradient of our own is traced after the context of its forward pass has ended, and therefore
  needs this as a static argument; the gradients that JAX derives keep the precision by themselves.

  >>> with jax.default_matmul_precision("highest"):
  ...   asked_precision()
  'highest'
  """
  return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
  """Adds a bias; the gradient for the bias accumulates in at least float32.

  Autodiff would accumulate bfloat16 gradients in bfloat16, for which XLA's CPU backend takes ten
  times as long.

  Args:
    x: (..., N), features.
    bias: in the dtype of `x`, with at most as many axes, each as long as that of `x` or 1.

  Returns:
    The sum, in the shape and dtype of `x`.

  >>> add_bias(jnp.zeros((2, 2)), jnp.array([1.0, 2.0])).tolist()
  [[1.0, 2.0], [1.0, 2.0]]
  """
  return x + bias.reshape((1,) * (x.ndim - bias.ndim) + bias.shape)


def _add_forward(x: jax.Array, bias: jax.Array):
  return add_bias(x, bias), bias


def _add_backward(bias: jax.Array, g: jax.Array):
  missing = g.ndim - bias.ndim
  axes = [*range(missing)]
  axes += [missing + i for i, size in enumerate(bias.shape) if size == 1 != g.shape[missing + i]]
  summed = jnp.sum(g, axes, dtype=np.promote_types(g.dtype, np.float32))
  return g, summed.astype(bias.dtype).reshape(bias.shape)


add_bias.defvjp(_add_forward, _add_backward)


def _product(
  x: jax.Array, y: jax.Array, axes: tuple[int, int], dtype, precision: str | None
) -> jax.Array:
  wide = np.promote_types(x.dtype, np.float32)
  dims = (((axes[0],), (axes[1],)), ((), ()))
  return lax.dot_general(x, y, dims, precision=precision, preferred_element_type=wide).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x: jax.Array, kernel: jax.Array, precision: str | None) -> jax.Array:
  return _product(x, kernel, (1, 0), x.dtype, precision)


def _forward(x: jax.Array, kernel: jax.Array, precision: str | None):
  return _matmul(x, kernel, precision), (x, kernel)


def _backward(precision: str | None, saved, g: jax.Array):
  x, kernel = saved
  return (
    _product(g, kernel, (1, 1), x.dtype, precision),
    _product(x, g, (0, 0), kernel.dtype, precision),
  )


_matmul.defvjp(_forward, _backward)
