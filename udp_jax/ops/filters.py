"""Edge-preserving filters: bilateral, guided, total variation. All batched and differentiable.

Images are float NHWC on any scale; widths of the range kernels (`sigma_color`, `regulariser`,
`weight`) are on the scale of the images, so 8 levels of 255 are 8 / 255 on images in [0, 1].
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
  """Means of neighbours weighted by nearness in place and in colour (Tomasi & Manduchi 1998).

  OpenCV's `bilateralFilter`: neighbours in a disc, the colour distance is the sum of the absolute
  differences of the channels, borders are mirrored without repeating the edge.

  Args:
    images: (B, H, W, C) float.
    diameter: odd, of the disc in pixels.
    sigma_color: of the Gaussian over colour distances, on the scale of the images.
    sigma_space: of the Gaussian over places, in pixels.

  Raises:
    ValueError: the diameter is even, or the disc reaches past the mirrored image.
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
  """Means over windows of 2 * radius + 1 pixels a side; borders are mirrored with the edge.

  Raises:
    ValueError: the radius is negative, or larger than the image.
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
  """In every window, the affine function of the guide that fits the images best (He et al. 2013).

  OpenCV's `ximgproc.guidedFilter`: a guide in colour enters with its whole 3x3 covariance.

  Args:
    guide: (B, H, W, 1) or (B, H, W, 3) float.
    images: (B, H, W, C) float, filtered channel by channel.
    radius: the windows have 2 * radius + 1 pixels a side.
    regulariser: added to the guide's variances, on the square of its scale: structure of the guide
      below it is smoothed away.

  Raises:
    ValueError: the guide has neither 1 nor 3 channels, or the windows do not fit.
  """
  channels = guide.shape[-1]
  if channels not in (1, 3):
    raise ValueError(f"a guide has 1 or 3 channels, this one {channels}")
  # Second moments lose fewer digits about a mean; the filter is the same for a shifted guide.
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
    slope = jnp.einsum(
      "bhwij,bhwjk->bhwik", _inverse(guide, mean_guide, radius, regulariser), covariance
    )
  intercept = mean_images - jnp.sum(slope * mean_guide[..., :, None], axis=-2)
  slope = box_mean(slope.reshape(flat.shape), radius).reshape(products.shape)
  return jnp.sum(slope * guide[..., :, None], axis=-2) + box_mean(intercept, radius) + offset


def _inverse(guide: jax.Array, mean: jax.Array, radius: int, regulariser: ArrayLike) -> jax.Array:
  """Inverses (B, H, W, 3, 3) of the guide's covariances plus `regulariser` on the diagonal."""
  pairs = [(i, j) for i in range(3) for j in range(i, 3)]
  first, second = (np.array(side) for side in zip(*pairs))
  moments = box_mean(guide[..., first] * guide[..., second], radius)
  c = moments - mean[..., first] * mean[..., second]
  c = c + regulariser * jnp.asarray(first == second, c.dtype)
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
  """Isotropic total variation, summed over pixels and channels: (B,)."""
  dy, dx = _gradient(images)
  return jnp.sum(jnp.sqrt(dy * dy + dx * dx), axis=(1, 2, 3))


def total_variation(
  images: jax.Array, *, weight: ArrayLike, num_steps: int = 100, mask: jax.Array | None = None
) -> jax.Array:
  """Minimises 1/2 sum mask * (u - images)^2 + weight * TV(u) over u, channel by channel.

  With no mask this is the model of Rudin, Osher & Fatemi (1992); pixels where the mask is 0 are
  filled in. Solved by the primal-dual steps of Chambolle & Pock (2011, algorithm 1).

  Args:
    images: (B, H, W, C) float.
    weight: scalar or (B, 1, 1, 1), on the scale of the images: a flat patch may move by about
      weight * perimeter / area.
    num_steps: iterations; 100 leave an average error of about a hundredth of `weight`.
    mask: (B, H, W, 1) or (B, H, W, C) in [0, 1], or None for ones.
  """
  trust = jnp.ones_like(images[..., :1]) if mask is None else mask
  step = 1.0 / math.sqrt(8.0)  # The norm of the gradient operator is below sqrt(8).
  weight = jnp.asarray(weight, images.dtype)

  def body(carry: tuple, _: None) -> tuple[tuple, None]:
    u, leading, dual_y, dual_x = carry
    dy, dx = _gradient(leading)
    dual_y, dual_x = dual_y + step * dy, dual_x + step * dx
    # The norm is not differentiable at 0; there the maximum picks `weight`, and its gradient.
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
  """Forward differences along height and width, 0 at the far border."""
  dy = jnp.pad(u[:, 1:] - u[:, :-1], ((0, 0), (0, 1), (0, 0), (0, 0)))
  dx = jnp.pad(u[:, :, 1:] - u[:, :, :-1], ((0, 0), (0, 0), (0, 1), (0, 0)))
  return dy, dx


def _divergence(dual_y: jax.Array, dual_x: jax.Array) -> jax.Array:
  """Minus the adjoint of `_gradient`; the last row and column of the duals are 0."""
  from_y = dual_y - jnp.pad(dual_y[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))
  from_x = dual_x - jnp.pad(dual_x[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)))
  return from_y + from_x
