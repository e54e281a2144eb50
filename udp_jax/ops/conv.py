"""2-D convolutions (NHWC, HWIO) whose gradients are fast inside `lax.scan` on a CPU.

XLA's CPU backend runs the convolutions that autodiff emits for a gradient on a naive path inside a
`while` body: 20 to 95 times slower than at the top level of a `jit`. All gradients here are
therefore written with forward-shaped NHWC/HWIO convolutions or matrix products only. Accelerators
do not have this problem, so `method="xla"` is the right choice there.

Methods (`method=None` picks by `default_method`):
  xla       `lax.conv_general_dilated` with JAX's own derivative.
  direct    the same forward pass, with gradients as forward-shaped convolutions.
  winograd  a quarter of the multiplications where that pays (`ops.winograd`: 3x3, stride 1, maps
            of 8 and more), one matrix product of patches on the smallest maps and for large
            kernels on small ones, else `direct`.
Except with `xla`, a 1x1 convolution is one matrix product and a strided convolution a matrix
product of patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from udp_jax.ops import winograd
from udp_jax.ops.linear import add_bias, asked_precision, dense

METHODS = ("xla", "direct", "winograd")
_LAYOUT = ("NHWC", "HWIO", "NHWC")
Padding = tuple[tuple[int, int], tuple[int, int]]
# A kernel with more pairs of channels is large. Held filters have eight times its size: of Stable
# Diffusion's U-Net 15 GiB. With few tiles (4x4 pixels each), making them takes longest: 8x8 pixels
# of 1,280 channels take six times as long as by patches, 16x16 twice as long. In bfloat16, products
# of patches are as fast again, while Winograd's stay float32.
_LARGE = 2**17
_FEW_TILES, _FEW_NARROW_TILES = 32, 128


def default_method(backend: str | None = None) -> str:
  """Returns the fastest measured method on `backend` (default: JAX's default backend).

  >>> default_method("cpu"), default_method("tpu")
  ('winograd', 'xla')
  """
  return "winograd" if (backend or jax.default_backend()) == "cpu" else "xla"


def conv2d(
  x: jax.Array,
  kernel: jax.Array,
  bias: jax.Array | None = None,
  *,
  stride: int = 1,
  padding: int | Sequence[Sequence[int]] = 1,
  method: str | None = None,
  held: winograd.Filters | None = None,
) -> jax.Array:
  """Cross-correlates images with a kernel, like PyTorch's `conv2d`.

  Args:
    x: images or features, (B, H, W, C).
    kernel: (KH, KW, C, D).
    bias: (D,), added at every position; or None.
    stride: step between outputs in both directions, pixels.
    padding: zeros on every side, pixels, or ((top, bottom), (left, right)).
    method: one of `METHODS`; None picks `default_method()`.
    held: result of `hold` for the same kernel, which then gets no gradient.

  Returns:
    (B, H', W', D) in the dtype of `x`.

  Raises:
    ValueError: the method is unknown, or the channels of `x` and `kernel` differ.

  >>> conv2d(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()
  [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
  """
  method = method or default_method()
  if method not in METHODS:
    raise ValueError(f"unknown convolution method {method!r}; known: {', '.join(METHODS)}")
  if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2]:
    raise ValueError(f"conv2d needs (B, H, W, C) and (KH, KW, C, D), got {x.shape}, {kernel.shape}")
  pad = _pairs(padding)
  size = kernel.shape[:2]
  if method == "xla":
    out = lax.conv_general_dilated(x, kernel, (stride, stride), pad, dimension_numbers=_LAYOUT)
  elif size == (1, 1) and pad == ((0, 0), (0, 0)) and stride == 1:
    out = dense(x, kernel[0, 0])
  elif method == "winograd" and _winograd_pays(x, kernel, pad, stride):
    out = winograd.convolve(x, kernel) if held is None else winograd.convolve_held(x, held)
  elif stride > 1 or (method == "winograd" and _columns_pay(x, kernel)):
    out = _columns(x, kernel, stride, pad)
  else:
    out = _direct(x, kernel, pad)
  return out if bias is None else add_bias(out, bias)


def upsampled_conv2d(
  x: jax.Array,
  kernel: jax.Array,
  bias: jax.Array | None = None,
  *,
  method: str | None = None,
  held: winograd.Filters | None = None,
) -> jax.Array:
  """Applies `conv2d` (padding 1) to images doubled in size by repeating every pixel.

  Method "xla" never builds the doubled image: repeating and convolving equals one convolution of
  the image spread out with zeros, with the kernel summed over 2x2 shifts.

  Args:
    x: (B, H, W, C), images or features.
    kernel: (3, 3, C, D).
    bias: (D,), or None.
    method: one of `METHODS`; None picks by backend.
    held: result of `hold` for images of the doubled size.

  Returns:
    (B, 2 * H, 2 * W, D) in the dtype of `x`.

  >>> upsampled_conv2d(jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 3, 8))).shape
  (1, 8, 8, 8)
  """
  b, h, w, c = x.shape
  if (method or default_method()) != "xla":
    x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
    return conv2d(x, kernel, bias, method=method, held=held)
  # XLA takes a dilated convolution for a transposed one only if its kernel is a reversed one;
  # otherwise GPUs convolve the map with its zeros, in four times the operations.
  summed = jnp.pad(jnp.flip(kernel, (0, 1)), ((0, 1), (0, 1), (0, 0), (0, 0)))
  summed += jnp.roll(summed, 1, 0)
  summed += jnp.roll(summed, 1, 1)
  out = _spread(asked_precision(), x, summed)
  return out if bias is None else add_bias(out, bias)


def hold(
  kernel: jax.Array,
  image_shape: Sequence[int],
  *,
  stride: int = 1,
  padding: int | Sequence[Sequence[int]] = 1,
  method: str | None = None,
) -> winograd.Filters | None:
  """Transforms a kernel once, for many calls of `conv2d` with a constant kernel.

  Args:
    kernel: (KH, KW, C, D).
    image_shape: (B, H, W, C), shape of the images to convolve.
    stride: step between outputs, pixels.
    padding: zeros around the image, pixels: one number, or ((top, bottom), (left, right)).
    method: one of `METHODS`; None picks by backend.

  Returns:
    The `held` argument of `conv2d`, or None if transforming gains nothing, or for a large kernel,
    whose filters would take more memory than making them again takes time.

  >>> hold(jnp.ones((3, 3, 16, 16)), (1, 8, 8, 16), method="winograd").forward.shape
  (36, 16, 16)
  >>> hold(jnp.ones((3, 3, 1, 1)), (1, 8, 8, 1), method="winograd") is None
  True
  """
  if not holds(method=method):
    return None
  if _is_large(kernel):
    return None
  images = jax.ShapeDtypeStruct(tuple(image_shape), kernel.dtype)
  pays = _winograd_pays(images, kernel, _pairs(padding), stride)
  return winograd.transform_filters(kernel) if pays else None


def holds(*, method: str | None = None) -> bool:
  """Returns whether `hold` ever prepares filters for `method` (None: `default_method()`).

  >>> holds(method="winograd"), holds(method="xla")
  (True, False)
  """
  return (method or default_method()) == "winograd"


def _pairs(padding: int | Sequence[Sequence[int]]) -> Padding:
  if isinstance(padding, int):
    return ((padding, padding), (padding, padding))
  return ((padding[0][0], padding[0][1]), (padding[1][0], padding[1][1]))


def _winograd_pays(
  x: jax.Array | jax.ShapeDtypeStruct, kernel: jax.Array, padding: Padding, stride: int
) -> bool:
  """Returns whether Winograd pays: small maps and few channels do not repay the transforms."""
  same = kernel.shape[:2] == (3, 3) and padding == ((1, 1), (1, 1)) and stride == 1
  wide_enough = min(x.shape[1:3]) >= 8 and min(kernel.shape[2:]) >= 16
  return same and wide_enough and not (_is_large(kernel) and _has_few_tiles(x))


def _columns_pay(x: jax.Array, kernel: jax.Array) -> bool:
  """Returns whether patches pay: on the smallest maps, reading the kernel is most of the work."""
  smallest = max(x.shape[1:3]) <= 4 and min(kernel.shape[2:]) >= 16
  return smallest or (_is_large(kernel) and _has_few_tiles(x))


def _is_large(kernel: jax.Array) -> bool:
  return kernel.shape[2] * kernel.shape[3] > _LARGE


def _has_few_tiles(x: jax.Array | jax.ShapeDtypeStruct) -> bool:
  tiles = x.shape[0] * -(-x.shape[1] // 4) * -(-x.shape[2] // 4)
  return tiles < (_FEW_NARROW_TILES if x.dtype.itemsize < 4 else _FEW_TILES)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _spread(precision: str | None, x: jax.Array, summed: jax.Array) -> jax.Array:
  """Convolves x (B, H, W, C), spread out with zeros, with summed (4, 4, C, D), reversed."""
  return _transposed(precision, summed)(x)


def _transposed(precision: str | None, summed: jax.Array) -> Callable[[jax.Array], jax.Array]:
  return partial(
    lax.conv_general_dilated,
    rhs=lax.rev(summed, (0, 1)),
    window_strides=(1, 1),
    padding=((2, 2), (2, 2)),
    lhs_dilation=(2, 2),
    dimension_numbers=_LAYOUT,
    precision=precision,
  )


def _spread_forward(precision: str | None, x: jax.Array, summed: jax.Array):
  return _spread(precision, x, summed), (x, summed)


def _spread_backward(precision: str | None, saved: tuple[jax.Array, ...], g: jax.Array):
  x, summed = saved
  _, pull = jax.vjp(_transposed(precision, summed), x)
  # As a strided convolution of g has it, with x as its result: by autodiff's own form XLA reverses
  # all of g in memory first.
  dsummed = lax.conv_general_dilated(
    lhs=g,
    rhs=x,
    window_strides=(1, 1),
    padding=((1, 1), (1, 1)),
    rhs_dilation=(2, 2),
    dimension_numbers=("CHWN", "IHWO", "HWCN"),
    precision=precision,
  )
  return *pull(g), dsummed


_spread.defvjp(_spread_forward, _spread_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _columns(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """Convolves by one matrix product of patches with the kernel in its memory layout."""
  patches = _patches(x, kernel.shape[:2], stride, padding)
  return dense(patches, kernel.reshape(-1, kernel.shape[3]), wide=True)


def _columns_forward(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding):
  # Patches are recomputed for the gradient: storing them would take KH * KW times the input.
  return _columns(x, kernel, stride, padding), (x, kernel)


def _columns_backward(stride: int, padding: Padding, saved, g: jax.Array):
  x, kernel = saved
  make = partial(_patches, size=kernel.shape[:2], stride=stride, padding=padding)
  wide = np.promote_types(x.dtype, np.float32)
  patches = make(x).reshape(-1, kernel.size // kernel.shape[3])
  flat, matrix = g.reshape(-1, g.shape[3]), kernel.reshape(-1, kernel.shape[3])
  dims = (((0,), (0,)), ((), ())), (((1,), (1,)), ((), ()))
  dkernel = lax.dot_general(patches, flat, dims[0], preferred_element_type=wide)
  # Add up the parts of a pixel before rounding to the dtype of x.
  dpatches = lax.dot_general(flat, matrix, dims[1], preferred_element_type=wide)
  (dx,) = jax.linear_transpose(make, jax.ShapeDtypeStruct(x.shape, wide))(
    dpatches.reshape(*g.shape[:3], -1)
  )
  return dx.astype(x.dtype), dkernel.reshape(kernel.shape).astype(kernel.dtype)


_columns.defvjp(_columns_forward, _columns_backward)


def _patches(x: jax.Array, size: tuple[int, ...], stride: int, padding: Padding) -> jax.Array:
  """(B, H, W, C) -> (B, H', W', KH * KW * C), with the inputs of each output side by side."""
  x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)])
  (h, w), (kh, kw) = x.shape[1:3], size
  rows, columns = (h - kh) // stride * stride + 1, (w - kw) // stride * stride + 1
  taps = [
    x[:, i : i + rows : stride, j : j + columns : stride] for i in range(kh) for j in range(kw)
  ]
  return jnp.concatenate(taps, axis=3)


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
  # Swap batch and channels: convolve (C, H, W, B) with (H', W', B, D).
  dkernel = lax.conv_general_dilated(
    x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), (1, 1), padding, dimension_numbers=_LAYOUT
  )
  return dx, dkernel.transpose(1, 2, 0, 3)


_direct.defvjp(_direct_forward, _direct_backward)
