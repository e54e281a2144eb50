"""Winograd's F(4x4, 3x3) for 3x3 convolutions of stride 1 (Lavin and Gray, arXiv:1509.09308).

It needs a quarter of the multiplications of the direct form, all in 36 batched matrix products. The
transforms run in at least float32 whatever the dtype of the features: they lose about five bits,
and with only eight, as in bfloat16, errors would reach ten per cent.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Input (B^T), filter (G) and output (A^T) transforms.
_BT = np.array(
  [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
  ]
)
_G = np.array(
  [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
  ]
)
_AT = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
# Transforms of both axes of a tile at once; of the 36 points, each column's are contiguous.
_FILTER_TRANSFORM = np.einsum("iy,jx->jiyx", _G, _G).reshape(36, 9)
_OUTPUT_TRANSFORM = np.einsum("yi,xj->yxji", _AT, _AT).reshape(16, 36)
# Small integers, which bfloat16 represents exactly.
_INPUT_TRANSFORM = np.einsum("iy,jx->jiyx", _BT, _BT).reshape(36, 36)


class Filters(NamedTuple):
  """A kernel transformed once, for many convolutions with a constant kernel.

  Attributes:
    forward: (36, C, D), transformed kernel, contracted over C.
    backward: (36, C, D), transformed flipped kernel, contracted over D for the input's gradient.
  """

  forward: jax.Array
  backward: jax.Array


def transform_filters(kernel: jax.Array) -> Filters:
  """Transforms a kernel (3, 3, C, D).

  >>> transform_filters(jnp.ones((3, 3, 2, 4))).forward.shape
  (36, 2, 4)
  """
  return Filters(_filters(kernel, flip=False), _filters(kernel, flip=True))


def _filters(kernel: jax.Array, *, flip: bool) -> jax.Array:
  # Reversing the nine taps flips both axes without copying the kernel.
  matrix = _FILTER_TRANSFORM[:, ::-1] if flip else _FILTER_TRANSFORM
  return _transform(matrix, _wide(kernel).reshape(9, *kernel.shape[2:]))


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves images (B, H, W, C) with a kernel (3, 3, C, D), padding 1 -> (B, H, W, D).

  >>> convolve(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].round().tolist()
  [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
  """
  return _product(x, _filters(kernel, flip=False), contract=1)


def _forward(x: jax.Array, kernel: jax.Array):
  # Save x rather than its tiles, which are 2.25 times as large and cheap to recompute.
  return convolve(x, kernel), (x, kernel)


def _backward(saved, g: jax.Array):
  x, kernel = saved
  dx = _product(g, _filters(kernel, flip=True), contract=2)
  b, h, w, d = g.shape
  th, tw = -(-h // 4), -(-w // 4)
  g = jnp.pad(g, ((0, 0), (0, 4 * th - h), (0, 4 * tw - w), (0, 0)))
  g = g.reshape(b, th, 4, tw, 4, d).transpose(2, 4, 0, 1, 3, 5).reshape(16, b * th * tw, d)
  cotangents = _transform(_OUTPUT_TRANSFORM.T, g)
  products = lax.dot_general(_input_tiles(x), cotangents, (((1,), (1,)), ((0,), (0,))))
  dkernel = _transform(_FILTER_TRANSFORM.T, products).reshape(kernel.shape)
  return dx, dkernel.astype(kernel.dtype)


convolve.defvjp(_forward, _backward)


@jax.custom_vjp
def convolve_held(x: jax.Array, filters: Filters) -> jax.Array:
  """`convolve` with filters transformed in advance, which get a zero gradient.

  >>> filters = transform_filters(jnp.ones((3, 3, 1, 1)))
  >>> convolve_held(jnp.ones((1, 3, 3, 1)), filters)[0, 1, :, 0].round().tolist()
  [6.0, 9.0, 6.0]
  """
  return _product(x, filters.forward, contract=1)


def _held_forward(x: jax.Array, filters: Filters):
  return convolve_held(x, filters), filters


def _held_backward(filters: Filters, g: jax.Array):
  return _product(g, filters.backward, contract=2), jax.tree.map(jnp.zeros_like, filters)


convolve_held.defvjp(_held_forward, _held_backward)


def _wide(x: jax.Array) -> jax.Array:
  return x.astype(np.promote_types(x.dtype, np.float32))


def _transform(matrix: np.ndarray, x: jax.Array) -> jax.Array:
  """Multiplies a constant matrix (m, n) by x (n, ...), in at least float32."""
  # Do not reshape: merging the batch axis with others would gather batches split over devices.
  wide = np.promote_types(x.dtype, np.float32)
  dims = (((1,), (0,)), ((), ()))
  return lax.dot_general(jnp.asarray(matrix, x.dtype), x, dims, preferred_element_type=wide)


def _input_tiles(x: jax.Array) -> jax.Array:
  """(B, H, W, C) -> transformed overlapping 6x6 tiles, (36, B * tiles, C), float32 or wider."""
  b, h, w, c = x.shape
  th, tw = -(-h // 4), -(-w // 4)
  x = jnp.pad(x, ((0, 0), (1, 4 * th + 1 - h), (1, 4 * tw + 1 - w), (0, 0)))
  if x.dtype.itemsize < 4:
    # Use one product, which is bound by memory: only the narrow copies of the pixels and the wide
    # result pass through it. XLA's CPU backend moves bfloat16 as float32, but moves integers
    # unchanged.
    down, across = 4 * th - 3, 4 * tw - 3
    bits = lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
    pixels = [bits[:, i : i + down : 4, j : j + across : 4] for i in range(6) for j in range(6)]
    stacked = lax.bitcast_convert_type(jnp.stack(pixels), x.dtype)
    return _transform(_INPUT_TRANSFORM, stacked).reshape(36, b * th * tw, c)
  # Two products with a small constant matrix are faster than sums of slices, which XLA turns into
  # dozens of loops, and compile far faster.
  rows = _transform(_BT, jnp.stack([x[:, i : i + 4 * th - 3 : 4] for i in range(6)]))
  columns = jnp.stack([rows[:, :, :, j : j + 4 * tw - 3 : 4] for j in range(6)])
  return _transform(_BT, columns).reshape(36, b * th * tw, c)


def _product(x: jax.Array, filters: jax.Array, *, contract: int) -> jax.Array:
  """Multiplies features (B, H, W, .) by filters (36, C, D), contracted over C (1) or D (2)."""
  b, h, w, _ = x.shape
  th, tw = -(-h // 4), -(-w // 4)
  products = lax.dot_general(_input_tiles(x), filters, (((2,), (contract,)), ((0,), (0,))))
  d = products.shape[2]
  out = _transform(_OUTPUT_TRANSFORM, products).reshape(4, 4, b, th, tw, d)
  out = out.transpose(2, 3, 0, 4, 1, 5).reshape(b, 4 * th, 4 * tw, d)
  return out[:, :h, :w].astype(x.dtype)
