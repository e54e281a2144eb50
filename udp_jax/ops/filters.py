"""Edge-preserving filters (bilateral, guided, total variation), batched and differentiable.

Images are float NHWC on any scale. The widths of range kernels (`sigma_color`, `regulariser`,
`weight`) are on the scale of the images: 8 levels of 255 are 8 / 255 on images in [0, 1].
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def bilateral(
  images: jax.Array, *, diameter: int, sigma_color: ArrayLike, sigma_space: ArrayLike
) -> jax.Array:
  """Averages neighbours, weighted by closeness in place and colour (Tomasi & Manduchi 1998).

  This is OpenCV's `bilateralFilter`: neighbours lie in a disc, the colour distance is the sum of
  absolute channel differences, and borders are mirrored without repeating the edge.

  Args:
    images: (B, H, W, C) float.
    diameter: diameter of the disc in pixels, odd.
    sigma_color: width of the Gaussian over colour distances, on the scale of the images.
    sigma_space: width of the Gaussian over positions, in pixels.

  Raises:
    ValueError: the diameter is even, or the disc exceeds the mirrored image.

  >>> flat = jnp.full((1, 5, 5, 3), 0.5)
  >>> blur = lambda x: bilateral(x, diameter=3, sigma_color=0.1, sigma_space=1.0)
  >>> jax.jit(blur)(flat).shape
  (1, 5, 5, 3)
  """
  if diameter < 1 or diameter % 2 == 0:
    raise ValueError(f"diameter must be odd and positive, got {diameter}")
  reach = diameter // 2
  height, width = images.shape[1:3]
  if reach >= min(height, width):
    raise ValueError(f"a disc of {diameter} pixels does not fit images of {height}x{width}")
  padded = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="reflect")
  total, weights = jnp.zeros_like(images), jnp.zeros_like(images[..., :1])
  for dy in range(-reach, reach + 1):
    for dx in range(-reach, reach + 1):
      if dy * dy + dx * dx > reach * reach:
        continue
      top, left = reach + dy, reach + dx
      other = padded[:, top : top + height, left : left + width]
      color = jnp.sum(jnp.abs(other - images), axis=-1, keepdims=True)
      near = -0.5 * (dy * dy + dx * dx) / jnp.square(sigma_space)
      weight = jnp.exp(near - 0.5 * jnp.square(color / sigma_color))
      total, weights = total + weight * other, weights + weight
  return total / weights


def box_mean(images: jax.Array, radius: int) -> jax.Array:
  """Averages windows of 2 * radius + 1 pixels a side; borders are mirrored, repeating the edge.

  Raises:
    ValueError: the radius is negative, or larger than the image.

  >>> box_mean(jnp.array([0.0, 3.0, 6.0]).reshape(1, 1, 3, 1), 1).flatten().tolist()
  [1.0, 3.0, 5.0]
  """
  height, width = images.shape[1:3]
  if not 0 <= radius <= min(height, width):
    raise ValueError(f"a radius of {radius} does not fit images of {height}x{width}")
  side = 2 * radius + 1
  padded = jnp.pad(images, ((0, 0), (radius, radius), (radius, radius), (0, 0)), mode="symmetric")
  rows = padded[:, :height]
  for i in range(1, side):
    rows = rows + padded[:, i : i + height]
  out = rows[:, :, :width]
  for i in range(1, side):
    out = out + rows[:, :, i : i + width]
  return out / (side * side)


def guided(
  guide: jax.Array, images: jax.Array, *, radius: int, regulariser: ArrayLike
) -> jax.Array:
  """Fits, in every window, an affine function of the guide to the images (He et al. 2013).

  This is OpenCV's `ximgproc.guidedFilter`: a colour guide enters with its full 3x3 covariance.

  Args:
    guide: (B, H, W, 1) or (B, H, W, 3) float.
    images: (B, H, W, C) float, filtered channel by channel.
    radius: radius of the windows, which have 2 * radius + 1 pixels a side.
    regulariser: variance added to the guide's, in squared units of the guide; structure of lower
      variance is smoothed away.

  Raises:
    ValueError: the guide has neither 1 nor 3 channels, or the windows do not fit.

  >>> edge = jnp.repeat(jnp.array([0.0, 1.0]), 4).reshape(1, 1, 8, 1) * jnp.ones((1, 8, 8, 1))
  >>> smooth = lambda x: guided(x, x, radius=2, regulariser=1e-6)
  >>> jax.jit(smooth)(edge)[0, 0, :, 0].round(2).tolist()
  [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
  """
  channels = guide.shape[-1]
  if channels not in (1, 3):
    raise ValueError(f"a guide has 1 or 3 channels, this one {channels}")
  # Subtract means: second moments lose fewer digits, and shifting the guide changes nothing.
  guide = guide - jnp.mean(guide, axis=(1, 2), keepdims=True)
  offset = jnp.mean(images, axis=(1, 2), keepdims=True)
  images = images - offset
  mean_guide, mean_images = box_mean(guide, radius), box_mean(images, radius)

  # (B, H, W, guide channel, image channel)
  products = guide[..., :, None] * images[..., None, :]
  flat = products.reshape(*products.shape[:3], -1)
  covariance = box_mean(flat, radius).reshape(products.shape)
  covariance = covariance - mean_guide[..., :, None] * mean_images[..., None, :]
  if channels == 1:
    variance = box_mean(guide * guide, radius) - mean_guide * mean_guide
    slope = covariance / (variance + regulariser)[..., None]
  else:
    inverse = _inverse(guide, mean_guide, radius, regulariser)
    # The inverse has large numbers of both signs: nothing may be rounded, whatever the backend.
    slope = jnp.einsum("bhwij,bhwjk->bhwik", inverse, covariance, precision="highest")
  intercept = mean_images - jnp.sum(slope * mean_guide[..., :, None], axis=-2)
  slope = box_mean(slope.reshape(flat.shape), radius).reshape(products.shape)
  return jnp.sum(slope * guide[..., :, None], axis=-2) + box_mean(intercept, radius) + offset


def _inverse(guide: jax.Array, mean: jax.Array, radius: int, regulariser: ArrayLike) -> jax.Array:
  """Inverts the guide's covariances plus `regulariser` on the diagonal: (B, H, W, 3, 3)."""
  pairs = [(i, j) for i in range(3) for j in range(i, 3)]
  first, second = (np.array(side) for side in zip(*pairs))
  moments = box_mean(guide[..., first] * guide[..., second], radius)
  c = moments - mean[..., first] * mean[..., second]
  c = c + regulariser * jnp.asarray(first == second, c.dtype)[None, None, None]
  a, b, d, e, f, g = (c[..., i] for i in range(6))  # [[a, b, d], [b, e, f], [d, f, g]]
  adjugate = jnp.stack(
    [
      jnp.stack([e * g - f * f, d * f - b * g, b * f - d * e], -1),
      jnp.stack([d * f - b * g, a * g - d * d, b * d - a * f], -1),
      jnp.stack([b * f - d * e, b * d - a * f, a * e - b * b], -1),
    ],
    -2,
  )
  determinant = a * adjugate[..., 0, 0] + b * adjugate[..., 0, 1] + d * adjugate[..., 0, 2]
  return adjugate / determinant[..., None, None]


def total_variation_norm(images: jax.Array) -> jax.Array:
  """Isotropic total variation, summed over pixels and channels: (B,).

  >>> total_variation_norm(jnp.array([[0.0, 0.0, 1.0]]).reshape(1, 1, 3, 1)).tolist()
  [1.0]
  """
  dy, dx = _gradient(images)
  return jnp.sum(jnp.sqrt(dy * dy + dx * dx), axis=(1, 2, 3))


def total_variation(
  images: jax.Array, *, weight: ArrayLike, num_steps: int = 100, mask: jax.Array | None = None
) -> jax.Array:
  """Minimises 1/2 sum mask * (u - images)^2 + weight * TV(u) over u, channel by channel.

  Without a mask this is the model of Rudin, Osher & Fatemi (1992); pixels with mask 0 are filled
  in. The solver uses the primal-dual steps of Chambolle & Pock (2011, algorithm 1).

  Args:
    images: (B, H, W, C) float.
    weight: scalar or (B, 1, 1, 1), on the scale of the images: a flat patch may move by about
      weight * perimeter / area.
    num_steps: number of iterations; 100 leave an average error of about a hundredth of `weight`.
    mask: (B, H, W, 1) or (B, H, W, C) in [0, 1]; None means ones.

  >>> spike = jnp.zeros((1, 5, 5, 1)).at[0, 2, 2, 0].set(1.0)
  >>> less = jax.jit(lambda x: total_variation(x, weight=0.1))(spike)
  >>> float(less[0, 2, 2, 0]) < 0.7
  True
  """
  trust = jnp.ones_like(images[..., :1]) if mask is None else mask
  step = 1.0 / math.sqrt(8.0)  # The norm of the gradient operator is below sqrt(8).
  weight = jnp.asarray(weight, images.dtype)

  def body(carry: tuple, _: None) -> tuple[tuple, None]:
    u, leading, dual_y, dual_x = carry
    dy, dx = _gradient(leading)
    dual_y, dual_x = dual_y + step * dy, dual_x + step * dx
    # The norm is not differentiable at 0; there the maximum selects `weight` and its gradient.
    length = jnp.sqrt(jnp.maximum(dual_y**2 + dual_x**2, jnp.finfo(images.dtype).tiny))
    shrink = weight / jnp.maximum(length, weight)
    dual_y, dual_x = dual_y * shrink, dual_x * shrink
    moved = u + step * _divergence(dual_y, dual_x)
    new = (moved + step * trust * images) / (1.0 + step * trust)
    return (new, 2.0 * new - u, dual_y, dual_x), None

  zeros = jnp.zeros_like(images)
  carry, _ = jax.lax.scan(body, (images, images, zeros, zeros), None, length=num_steps)
  return carry[0]


def _gradient(u: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Forward differences along height and width, zero at the far border."""
  dy = jnp.pad(u[:, 1:] - u[:, :-1], ((0, 0), (0, 1), (0, 0), (0, 0)))
  dx = jnp.pad(u[:, :, 1:] - u[:, :, :-1], ((0, 0), (0, 0), (0, 1), (0, 0)))
  return dy, dx


def _divergence(dual_y: jax.Array, dual_x: jax.Array) -> jax.Array:
  """Negative adjoint of `_gradient`; the last row and column of the duals are zero."""
  from_y = dual_y - jnp.pad(dual_y[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))
  from_x = dual_x - jnp.pad(dual_x[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)))
  return from_y + from_x
