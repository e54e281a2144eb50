"""Applies networks to pictures of any size in a bounded memory: windows with context around them.

A window is a core with `context` pixels on every side, of which only the core is kept; at the
picture's borders the window moves inwards, so that a network meets the real border there and no
invented one. Cores overlap a little and blend there (`ops.tiles`). A network that sees no farther
than the context gives what it gives on the whole picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from udp_jax.ops import tiles

Network = Callable[[jax.Array], jax.Array]


class Windows(NamedTuple):
  """How pictures are cut.

  Attributes:
    side: side of a window in pixels, context included; pictures up to it are not cut.
    context: pixels on every side of a core that are computed and not kept.
    blend: pixels over which neighbouring cores blend.
    multiple: what the windows' places are multiples of, for networks that look at blocks of pixels;
      the pictures' sides and `side` have to be as well.
  """

  side: int
  context: int
  blend: int = 8
  multiple: int = 1

  @property
  def core(self) -> int:
    """Side of what is kept of a window."""
    return self.side - 2 * self.context


def apply(network: Network, images: jax.Array, windows: Windows) -> jax.Array:
  """Applies a network that keeps the size to pictures, in windows if they are larger than one.

  Args:
    network: (b, h, w, C) -> (b, h, w, C); computes nothing across pictures.
    images: (B, H, W, C), at most the size of a window or of any larger size.
    windows: how they are cut.

  Returns:
    (B, H, W, C).

  Raises:
    ValueError: a core is no larger than what blends, or a side is not a multiple.

  >>> double = lambda x: 2 * x
  >>> apply(double, jnp.ones((1, 40, 25, 3)), Windows(16, 2, 4)).mean().tolist()
  2.0
  """
  side, context, blend, multiple = windows
  height, width = images.shape[1:3]
  if windows.core <= blend or context < multiple - 1:
    raise ValueError(f"windows of {side} pixels with a context of {context} have no core")
  if any(size % multiple for size in (side, height, width)):
    raise ValueError(f"{height}x{width} in windows of {side} are not multiples of {multiple}")
  if max(height, width) <= side:
    return few_at_a_time(network, images, side * side)
  tops, heights = _along(height, windows)
  lefts, widths = _along(width, windows)
  batch, channels = images.shape[0], images.shape[3]
  window = (batch, min(side, height), min(side, width), channels)
  core = (batch, heights.shape[1], widths.shape[1], channels)
  last = jnp.asarray([height - window[1], width - window[2]])
  corners = jnp.asarray([(top, left) for top in tops for left in lefts])
  shares = (heights[:, None, :, None] * widths[None, :, None, :]).reshape(-1, *core[1:3], 1)

  def add(total: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    (top, left), share = at
    y, x = jnp.clip(at[0] - context, 0, last) // multiple * multiple
    seen = lax.dynamic_slice(images, (0, y, x, 0), window)
    done = few_at_a_time(network, seen, side * side)
    kept = share * lax.dynamic_slice(done, (0, top - y, left - x, 0), core)
    before = lax.dynamic_slice(total, (0, top, left, 0), core)
    return lax.dynamic_update_slice(total, before + kept, (0, top, left, 0)), None

  total, _ = lax.scan(add, jnp.zeros_like(images), (corners, jnp.asarray(shares)))
  return total


def _along(length: int, windows: Windows) -> tuple[tuple[int, ...], np.ndarray]:
  """Returns where cores begin along an axis, and their shares (number, size)."""
  if length <= windows.side:
    return (0,), np.ones((1, length), np.float32)
  core = windows.core
  grid = tiles.plan(length, core, core, overlap=windows.blend)  # A column of tiles.
  return grid.tops, tiles.weights(grid)[:, :, 0]


def few_at_a_time(network: Network, images: jax.Array, pixels: int) -> jax.Array:
  """Applies a network to so many pictures at a time that they have at most `pixels` pixels.

  >>> few_at_a_time(lambda x: x - len(x), jnp.ones((6, 4, 4, 1)), 40).max().tolist()
  -1.0
  """
  count, height, width, channels = images.shape
  most = max(1, pixels // (height * width))
  size = max(n for n in range(1, min(most, count) + 1) if count % n == 0)
  if size == count:
    return network(images)
  parts = images.reshape(count // size, size, height, width, channels)
  return lax.map(network, parts).reshape(images.shape)
