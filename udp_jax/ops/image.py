"""Image arrays: ranges, 8-bit levels, resizing, blurring and grids.

`images` are float32 NHWC in [0, 1]; a model's range is [-1, 1]; `uint8` arrays hold 8-bit levels.
Functions of float images are differentiable and do not clip unless they say so.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

# Compilers turn a division by 255 into a multiplication by this, which differs by one bit.
# Multiplying everywhere makes compiled and plain calls agree. 255 * _LEVEL is exactly 1.
_LEVEL = np.float32(1.0 / 255.0)

RESIZE_METHODS = ("nearest", "box", "linear", "cubic", "lanczos3", "lanczos5")


def to_model_range(images: jax.Array) -> jax.Array:
  """Maps [0, 1] to [-1, 1].

  >>> to_model_range(jnp.array([0.0, 0.5, 1.0])).tolist()
  [-1.0, 0.0, 1.0]
  """
  return 2.0 * images - 1.0


def from_model_range(x0: jax.Array, *, clip: bool = False) -> jax.Array:
  """Maps [-1, 1] to [0, 1]; values outside are kept unless `clip`.

  >>> from_model_range(jnp.array([-1.0, 0.0, 3.0]), clip=True).tolist()
  [0.0, 0.5, 1.0]
  """
  images = 0.5 * (x0 + 1.0)
  return jnp.clip(images, 0.0, 1.0) if clip else images


def _round_half_up(x: jax.Array) -> jax.Array:
  # floor(x + 0.5) would round 0.49999997 up, because the sum itself rounds to 1.
  whole = jnp.floor(x)
  return whole + (x - whole >= 0.5).astype(whole.dtype)


def quantise(images: jax.Array) -> jax.Array:
  """Rounds each value to the nearest 8-bit level, halves up, clipped to [0, 255]: uint8.

  >>> quantise(jnp.array([0.0, 0.5, 1.2])).tolist()
  [0, 128, 255]
  """
  return jnp.clip(_round_half_up(255.0 * jnp.asarray(images)), 0.0, 255.0).astype(jnp.uint8)


def to_float(levels: ArrayLike) -> jax.Array:
  """Maps uint8 levels to float32 in [0, 1].

  Raises:
    TypeError: `levels` is not uint8; floats would silently shrink by 255.

  >>> to_float(np.array([0, 255], np.uint8)).tolist()
  [0.0, 1.0]
  """
  levels = jnp.asarray(levels)
  if levels.dtype != jnp.uint8:
    raise TypeError(f"expected uint8 levels, got {levels.dtype}")
  return _scale_levels(levels.astype(jnp.float32))


def _scale_levels(levels: jax.Array) -> jax.Array:
  """Maps float levels in [0, 255] to [0, 1], with the same result in every compiled program.

  The minimum changes no value. It keeps the compiler from fusing the product with a following sum,
  such as `1 - images`, into one rounding, which it does in some programs only.
  """
  return jnp.minimum(levels * _LEVEL, 1.0)


def quantise_within(clean: ArrayLike, delta: jax.Array, radius_255: ArrayLike) -> jax.Array:
  """Adds delta to 8-bit images so that the 8-bit RESULT keeps the budget.

  The budget applies to the saved file, so the bound holds after rounding, and a radius between two
  levels counts as the lower one.

  Args:
    clean: (B, H, W, C) uint8, clean images.
    delta: (B, H, W, C), perturbation on the [0, 1] scale.
    radius_255: budget in 8-bit levels: scalar, (B,), or of clean's rank, such as (B, H, W, 1) for
      every pixel. Pass 8 rather than 255 * (8 / 255), which may fall short.

  Returns:
    uint8 with |result - clean| <= floor(radius_255).

  Raises:
    TypeError: `clean` is not uint8.

  >>> clean = np.full((1, 1, 1, 3), 100, np.uint8)
  >>> quantise_within(clean, jnp.full((1, 1, 1, 3), 0.5), 8).tolist()
  [[[[108, 108, 108]]]]
  """
  clean = jnp.asarray(clean)
  if clean.dtype != jnp.uint8:
    raise TypeError(f"expected uint8 clean images, got {clean.dtype}")
  bound = jnp.floor(jnp.asarray(radius_255, jnp.float32))
  if bound.ndim == 1:
    bound = bound.reshape(bound.shape + (1,) * (clean.ndim - 1))
  # Rounding and bound are both exact in whole levels relative to clean.
  change = jnp.clip(_round_half_up(255.0 * delta), -bound, bound)
  return jnp.clip(clean.astype(jnp.float32) + change, 0.0, 255.0).astype(jnp.uint8)


@jax.custom_jvp
def _snap(images: jax.Array) -> jax.Array:
  return _scale_levels(jnp.clip(_round_half_up(255.0 * images), 0.0, 255.0))


@_snap.defjvp
def _snap_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
  return _snap(primals[0]), tangents[0]


def fake_quantise(images: jax.Array) -> jax.Array:
  """Computes to_float(quantise(images)) with the identity's gradient (straight-through).

  >>> float(255 * fake_quantise(jnp.array(0.5)))
  128.0
  >>> float(jax.grad(fake_quantise)(0.5))
  1.0
  """
  return _snap(images)


def resize(images: jax.Array, size: tuple[int, int], *, method: str = "lanczos3") -> jax.Array:
  """Resizes (B, H, W, C) to `size` = (height, width), with antialiasing when shrinking.

  Args:
    images: (B, H, W, C) float.
    size: the new (height, width).
    method: one of `RESIZE_METHODS`. "box" takes exact means of whole blocks. Cubic and Lanczos
      kernels have negative lobes, so their results can leave [0, 1] slightly.

  Raises:
    ValueError: the method is unknown, or "box" gets a size that does not divide the images' size.

  >>> resize(jnp.arange(4.0).reshape(1, 2, 2, 1), (1, 1), method="box").tolist()
  [[[[1.5]]]]
  """
  if method not in RESIZE_METHODS:
    raise ValueError(f"resize method {method!r} is not one of {RESIZE_METHODS}")
  b, h, w, c = images.shape
  if (h, w) == tuple(size):
    return images
  if method == "box":
    if h % size[0] or w % size[1]:
      raise ValueError(f"box resizing {h}x{w} to {size[0]}x{size[1]} needs whole factors")
    blocks = images.reshape(b, size[0], h // size[0], size[1], w // size[1], c)
    return blocks.mean(axis=(2, 4))
  return jax.image.resize(images, (b, *size, c), method, antialias=True)


def gaussian_blur(
  images: jax.Array, sigma: ArrayLike, *, kernel_size: int | None = None
) -> jax.Array:
  """Blurs each channel with a Gaussian; borders are mirrored without repeating the edge.

  Args:
    images: (B, H, W, C) float.
    sigma: standard deviation in pixels, positive. May be traced if `kernel_size` is given.
    kernel_size: number of taps, odd; None covers 3 sigma on each side.

  Raises:
    ValueError: sigma is not positive, or the kernel is even or exceeds the mirrored image.

  >>> spike = jnp.zeros((1, 9, 9, 1)).at[0, 4, 4].set(1.0)
  >>> blurred = jax.jit(lambda x: gaussian_blur(x, 1.0))(spike)
  >>> float(blurred.sum().round(3)), bool(blurred.max() < 0.2)
  (1.0, True)
  """
  if not isinstance(sigma, jax.Array) and not float(np.asarray(sigma)) > 0.0:
    raise ValueError(f"sigma must be positive, got {sigma}")
  if kernel_size is None:
    kernel_size = 2 * math.ceil(3.0 * float(np.asarray(sigma))) + 1
  if kernel_size % 2 == 0 or kernel_size < 1:
    raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
  reach = kernel_size // 2
  h, w = images.shape[1:3]
  if reach >= min(h, w):
    raise ValueError(f"a kernel of {kernel_size} taps does not fit images of {h}x{w}")
  offsets = jnp.arange(-reach, reach + 1, dtype=jnp.float32)
  weights = jnp.exp(-0.5 * (offsets / jnp.asarray(sigma, jnp.float32)) ** 2)
  weights = (weights / weights.sum()).astype(images.dtype)
  padded = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="reflect")
  # Use shifted sums instead of a convolution: XLA's depthwise convolutions, and even more their
  # gradients, are slow on CPUs, and the kernel is short.
  rows = weights[0] * padded[:, :h]
  for i in range(1, kernel_size):
    rows = rows + weights[i] * padded[:, i : i + h]
  out = weights[0] * rows[:, :, :w]
  for i in range(1, kernel_size):
    out = out + weights[i] * rows[:, :, i : i + w]
  return out


def blur_matrix(size: int, sigmas: jax.Array, *, reach: int = 16) -> jax.Array:
  """Returns (B, size, size), products with which blur an axis as `gaussian_blur` does.

  Use them where every picture, or every region of one, has another sigma that may be traced and
  differentiated: out = rows @ channel @ columns^T.

  Args:
    size: length of the axis.
    sigmas: (B,) standard deviations in pixels, positive.
    reach: number of taps on each side of the centre; at most size - 1 are used.

  >>> spike = jnp.zeros((9, 1)).at[4].set(1.0)
  >>> blurred = blur_matrix(9, jnp.array([1.0]), reach=3)[0] @ spike
  >>> expected = gaussian_blur(jnp.broadcast_to(spike, (9, 9)).reshape(1, 9, 9, 1), 1.0)
  >>> bool(jnp.allclose(blurred[:, 0], expected[0, :, 0, 0], atol=1e-6))
  True
  """
  reach = min(reach, size - 1)
  offsets = jnp.arange(-reach, reach + 1, dtype=jnp.float32)[None]
  weights = jnp.exp(-0.5 * jnp.square(offsets / sigmas[:, None]))
  weights = weights / jnp.sum(weights, axis=1, keepdims=True)
  # Where a row's tap lies, as a place of the axis that is mirrored at both ends.
  place = np.abs(np.arange(size)[:, None] + np.arange(-reach, reach + 1)[None])
  place = np.minimum(place, 2 * (size - 1) - place)
  rows = np.broadcast_to(np.arange(size)[:, None], place.shape)
  taps = jnp.broadcast_to(weights[:, None], (len(sigmas), *place.shape))
  return jnp.zeros((len(sigmas), size, size)).at[:, rows, place].add(taps)


def grid(images: ArrayLike, columns: int, *, fill: float = 0) -> jax.Array:
  """Tiles (B, H, W, C) row by row into one (rows * H, columns * W, C) picture of the same dtype.

  Args:
    images: (B, H, W, C), uint8 or float.
    columns: images per row, at least 1.
    fill: value of the empty cells in the last row.

  >>> grid(np.ones((5, 4, 4, 3), np.uint8), 3).shape
  (8, 12, 3)
  """
  images = jnp.asarray(images)
  if columns < 1:
    raise ValueError(f"columns must be at least 1, got {columns}")
  b, h, w, c = images.shape
  rows = -(-b // columns)
  cells = jnp.pad(
    images, ((0, rows * columns - b), (0, 0), (0, 0), (0, 0)), constant_values=fill
  ).reshape(rows, columns, h, w, c)
  return cells.transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, c)
