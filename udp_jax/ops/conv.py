"""2-D convolutions (NHWC, HWIO) whose gradients are fast inside `lax.scan` on a CPU.

XLA's CPU backend runs the convolutions that autodiff emits for a gradient on a naive path as soon
as they stand in a `while` body: 20 to 95 times slower than at the top level of a `jit`. Every
gradient here is therefore written with forward-shaped NHWC/HWIO convolutions or matrix products
only. Accelerators do not have the problem; there `method="xla"` is the right choice.

Methods (`method=None` picks by `default_method`):
  xla       `lax.conv_general_dilated` with JAX's own derivative.
  direct    the same forward pass, gradients as forward-shaped convolutions.
  winograd  F(4x4, 3x3) of Lavin and Gray (arXiv:1509.09308): a quarter of the multiplications,
            all of them in 36 batched matrix products. Only 3x3, stride 1, float32 or wider;
            otherwise `direct`.
A 1x1 convolution is one matrix product and a strided one becomes a stride-1 convolution after
space-to-depth, whatever the method (but for `xla`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

METHODS = ("xla", "direct", "winograd")
_LAYOUT = ("NHWC", "HWIO", "NHWC")
Padding = tuple[tuple[int, int], tuple[int, int]]

# Winograd F(4x4, 3x3): input (B^T), filter (G) and output (A^T) transforms.
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
_FILTER_TRANSFORM = np.kron(_G, _G)  # (36, 9)
_OUTPUT_TRANSFORM = np.kron(_AT, _AT)  # (16, 36)


def default_method(backend: str | None = None) -> str:
  """The method that measures best on `backend` (default: JAX's default backend)."""
  return "winograd" if (backend or jax.default_backend()) == "cpu" else "xla"


def conv2d(
  x: jax.Array,
  kernel: jax.Array,
  bias: jax.Array | None = None,
  *,
  stride: int = 1,
  padding: int | Sequence[Sequence[int]] = 1,
  method: str | None = None,
) -> jax.Array:
  """Cross-correlates images with a kernel, as PyTorch's `conv2d` does.

  Args:
    x: images or features, (B, H, W, C).
    kernel: (KH, KW, C, D).
    bias: (D,), added to every position.
    stride: the same in both directions.
    padding: zeros on every side, or ((top, bottom), (left, right)).
    method: one of `METHODS`; None picks `default_method()`.

  Returns:
    (B, H', W', D) in the dtype of `x`.

  Raises:
    ValueError: unknown method, or channels of `x` and `kernel` that differ.
  """
  method = method or default_method()
  if method not in METHODS:
    raise ValueError(f"unknown convolution method {method!r}; known: {', '.join(METHODS)}")
  if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2]:
    raise ValueError(f"conv2d needs (B, H, W, C) and (KH, KW, C, D), got {x.shape}, {kernel.shape}")
  if isinstance(padding, int):
    padding = ((padding, padding), (padding, padding))
  pad: Padding = ((padding[0][0], padding[0][1]), (padding[1][0], padding[1][1]))
  size = kernel.shape[:2]
  if method == "xla":
    out = lax.conv_general_dilated(x, kernel, (stride, stride), pad, dimension_numbers=_LAYOUT)
  elif stride > 1:
    out = _strided(x, kernel, stride, pad)
  elif size == (1, 1) and pad == ((0, 0), (0, 0)):
    out = x @ kernel[0, 0]
  elif method == "winograd" and _winograd_pays(x, kernel, pad):
    out = _winograd(x, kernel)
  else:
    out = _direct(x, kernel, pad)
  return out if bias is None else out + bias


def _winograd_pays(x: jax.Array, kernel: jax.Array, padding: Padding) -> bool:
  """Small maps and few channels have too little arithmetic to pay for the transforms."""
  same = kernel.shape[:2] == (3, 3) and padding == ((1, 1), (1, 1))
  # The transforms lose about five bits; of bfloat16's eight that leaves errors of ten per cent.
  wide = jnp.finfo(x.dtype).bits >= 32
  return same and wide and min(x.shape[1:3]) >= 16 and min(kernel.shape[2:]) >= 16


def _strided(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """A strided convolution as a stride-1 one over blocks of stride x stride pixels."""
  kh, kw, c, d = kernel.shape
  blocks = [-(-k // stride) for k in (kh, kw)]
  outs = [
    (n + sum(p) - k) // stride + 1 for n, p, k in zip(x.shape[1:3], padding, (kh, kw), strict=True)
  ]
  # Pad (or crop) so that the input is a whole number of blocks.
  needs = [stride * (o + b - 1) for o, b in zip(outs, blocks, strict=True)]
  after = [need - n - p[0] for need, n, p in zip(needs, x.shape[1:3], padding, strict=True)]
  config = [(0, 0, 0), *((p[0], a, 0) for p, a in zip(padding, after, strict=True)), (0, 0, 0)]
  x = lax.pad(x, jnp.zeros((), x.dtype), config)
  b, h, w, _ = x.shape
  x = x.reshape(b, h // stride, stride, w // stride, stride, c).transpose(0, 1, 3, 2, 4, 5)
  x = x.reshape(b, h // stride, w // stride, stride * stride * c)
  bh, bw = blocks
  kernel = jnp.pad(kernel, ((0, bh * stride - kh), (0, bw * stride - kw), (0, 0), (0, 0)))
  kernel = kernel.reshape(bh, stride, bw, stride, c, d).transpose(0, 2, 1, 3, 4, 5)
  return _direct(x, kernel.reshape(bh, bw, stride * stride * c, d), ((0, 0), (0, 0)))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _direct(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
  return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=_LAYOUT)


def _direct_forward(x: jax.Array, kernel: jax.Array, padding: Padding):
  return _direct(x, kernel, padding), (x, kernel)


def _direct_backward(padding: Padding, saved, g: jax.Array):
  x, kernel = saved
  back = [(k - 1 - lo, k - 1 - hi) for k, (lo, hi) in zip(kernel.shape[:2], padding, strict=True)]
  flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
  dx = lax.conv_general_dilated(g, flipped, (1, 1), back, dimension_numbers=_LAYOUT)
  # Channels play the batch and the batch plays the channels: (C, H, W, B) with (H', W', B, D).
  dkernel = lax.conv_general_dilated(
    x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), (1, 1), padding, dimension_numbers=_LAYOUT
  )
  return dx, dkernel.transpose(1, 2, 0, 3)


_direct.defvjp(_direct_forward, _direct_backward)


def _combine(weights: np.ndarray, parts: Sequence[jax.Array]) -> jax.Array:
  """Sum of weights[i] * parts[i] without the zero terms."""
  total = None
  for weight, part in zip(weights, parts, strict=True):
    if weight:
      term = part if weight == 1 else -part if weight == -1 else part * float(weight)
      total = term if total is None else total + term
  assert total is not None
  return total


def _input_tiles(x: jax.Array) -> jax.Array:
  """(B, H, W, C) -> transformed overlapping 6x6 tiles, (36, B * tiles, C)."""
  b, h, w, c = x.shape
  th, tw = -(-h // 4), -(-w // 4)
  x = jnp.pad(x, ((0, 0), (1, 4 * th + 1 - h), (1, 4 * tw + 1 - w), (0, 0)))
  rows = [x[:, i : i + 4 * th - 3 : 4] for i in range(6)]
  rows = [_combine(_BT[i], rows) for i in range(6)]
  tiles = []
  for row in rows:
    columns = [row[:, :, j : j + 4 * tw - 3 : 4] for j in range(6)]
    tiles += [_combine(_BT[j], columns).reshape(b * th * tw, c) for j in range(6)]
  return jnp.stack(tiles)


def _transform(matrix: np.ndarray, x: jax.Array) -> jax.Array:
  """Product of a constant matrix (m, n) and x (n, ...), in the dtype of x."""
  flat = jnp.asarray(matrix, x.dtype) @ x.reshape(x.shape[0], -1)
  return flat.reshape(matrix.shape[0], *x.shape[1:])


def _winograd_product(tiles: jax.Array, kernel: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Transformed tiles (36, T, C) and a kernel (3, 3, C, D) -> (B, H, W, D)."""
  b, h, w, _ = shape
  th, tw = -(-h // 4), -(-w // 4)
  c, d = kernel.shape[2:]
  filters = _transform(_FILTER_TRANSFORM, kernel.reshape(9, c, d))
  products = lax.dot_general(tiles, filters, (((2,), (1,)), ((0,), (0,))))
  out = _transform(_OUTPUT_TRANSFORM, products).reshape(4, 4, b, th, tw, d)
  out = out.transpose(2, 3, 0, 4, 1, 5).reshape(b, 4 * th, 4 * tw, d)
  return out[:, :h, :w]


@jax.custom_vjp
def _winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return _winograd_product(_input_tiles(x), kernel, x.shape)


def _winograd_forward(x: jax.Array, kernel: jax.Array):
  # x is saved, not its tiles: they are 2.25 times as large and cheap to make again.
  return _winograd(x, kernel), (x, kernel)


def _winograd_backward(saved, g: jax.Array):
  x, kernel = saved
  b, h, w, d = g.shape
  flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
  dx = _winograd_product(_input_tiles(g), flipped, g.shape)
  th, tw = -(-h // 4), -(-w // 4)
  g = jnp.pad(g, ((0, 0), (0, 4 * th - h), (0, 4 * tw - w), (0, 0)))
  g = g.reshape(b, th, 4, tw, 4, d).transpose(2, 4, 0, 1, 3, 5).reshape(16, b * th * tw, d)
  cotangents = _transform(_OUTPUT_TRANSFORM.T, g)
  products = lax.dot_general(_input_tiles(x), cotangents, (((1,), (1,)), ((0,), (0,))))
  return dx, _transform(_FILTER_TRANSFORM.T, products).reshape(kernel.shape)


_winograd.defvjp(_winograd_forward, _winograd_backward)
