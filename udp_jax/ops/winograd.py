"""Winograd's F(4x4, 3x3) for 3x3 convolutions of stride 1 (Lavin and Gray, arXiv:1509.09308).

A quarter of the multiplications of the direct form, all of them in 36 batched matrix products. The
transforms run in float32 or wider whatever the dtype of the features: they lose about five bits,
and of bfloat16's eight that would leave errors of ten per cent.
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
# On both axes of a tile at once; of the 36 points, those of one column lie together.
_FILTER_TRANSFORM = np.einsum("iy,jx->jiyx", _G, _G).reshape(36, 9)
_OUTPUT_TRANSFORM = np.einsum("yi,xj->yxji", _AT, _AT).reshape(16, 36)
# Small whole numbers, which bfloat16 holds exactly.
_INPUT_TRANSFORM = np.einsum("iy,jx->jiyx", _BT, _BT).reshape(36, 36)


class Filters(NamedTuple):
  """A kernel transformed once, for many convolutions that do not change it.

  Attributes:
    forward: (36, C, D), contracted over C.
    backward: (36, C, D) of the flipped kernel, contracted over D: the gradient of the input.
  """

  forward: jax.Array
  backward: jax.Array


def transform_filters(kernel: jax.Array) -> Filters:
  """Transforms a kernel (3, 3, C, D)."""
  return Filters(_filters(kernel, flip=False), _filters(kernel, flip=True))


def _filters(kernel: jax.Array, *, flip: bool) -> jax.Array:
  # Reading the nine taps backwards flips both axes, without a copy of the kernel.
  matrix = _FILTER_TRANSFORM[:, ::-1] if flip else _FILTER_TRANSFORM
  return _transform(matrix, _wide(kernel).reshape(9, *kernel.shape[2:]))


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Images (B, H, W, C) and a kernel (3, 3, C, D), padding 1 -> (B, H, W, D)."""
  return _product(x, _filters(kernel, flip=False), contract=1)


def _forward(x: jax.Array, kernel: jax.Array):
  # x is saved, not its tiles: they are 2.25 times as large and cheap to make again.
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
  """`convolve` with filters that were transformed before; its gradient for them is zero."""
  return _product(x, filters.forward, contract=1)


def _held_forward(x: jax.Array, filters: Filters):
  return convolve_held(x, filters), filters


def _held_backward(filters: Filters, g: jax.Array):
  return _product(g, filters.backward, contract=2), jax.tree.map(jnp.zeros_like, filters)


convolve_held.defvjp(_held_forward, _held_backward)


def _wide(x: jax.Array) -> jax.Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _transform(matrix: np.ndarray, x: jax.Array) -> jax.Array:
  """Product of a constant matrix (m, n) and x (n, ...), in float32 or wider."""
  # No reshaping here: it would merge the batch axis with others, and split batches be gathered.
  wide = jnp.promote_types(x.dtype, jnp.float32)
  dims = (((1,), (0,)), ((), ()))
  return lax.dot_general(jnp.asarray(matrix, x.dtype), x, dims, preferred_element_type=wide)


def _input_tiles(x: jax.Array) -> jax.Array:
  """(B, H, W, C) -> transformed overlapping 6x6 tiles, (36, B * tiles, C), float32 or wider."""
  b, h, w, c = x.shape
  th, tw = -(-h // 4), -(-w // 4)
  x = jnp.pad(x, ((0, 0), (1, 4 * th + 1 - h), (1, 4 * tw + 1 - w), (0, 0)))
  if x.dtype.itemsize < 4:
    # One product: it waits for memory, and only the copies of the pixels, which are narrow, and
    # the result, which is wide, pass through it. XLA's CPU backend moves bfloat16 as float32, but
    # whole numbers as they are.
    down, across = 4 * th - 3, 4 * tw - 3
    bits = lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
    pixels = [bits[:, i : i + down : 4, j : j + across : 4] for i in range(6) for j in range(6)]
    stacked = lax.bitcast_convert_type(jnp.stack(pixels), x.dtype)
    return _transform(_INPUT_TRANSFORM, stacked).reshape(36, b * th * tw, c)
  # As two products with a small constant matrix: quicker than sums of slices, which XLA makes
  # dozens of loops of, and far quicker to compile.
  rows = _transform(_BT, jnp.stack([x[:, i : i + 4 * th - 3 : 4] for i in range(6)]))
  columns = jnp.stack([rows[:, :, :, j : j + 4 * tw - 3 : 4] for j in range(6)])
  return _transform(_BT, columns).reshape(36, b * th * tw, c)


def _product(x: jax.Array, filters: jax.Array, *, contract: int) -> jax.Array:
  """Features (B, H, W, .) times transformed filters (36, C, D), contracted over C (1) or D (2)."""
  b, h, w, _ = x.shape
  th, tw = -(-h // 4), -(-w // 4)
  products = lax.dot_general(_input_tiles(x), filters, (((2,), (contract,)), ((0,), (0,))))
  d = products.shape[2]
  out = _transform(_OUTPUT_TRANSFORM, products).reshape(4, 4, b, th, tw, d)
  out = out.transpose(2, 3, 0, 4, 1, 5).reshape(b, 4 * th, 4 * tw, d)
  return out[:, :h, :w].astype(x.dtype)
