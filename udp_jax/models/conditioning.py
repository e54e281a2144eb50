"""The conditioning of Stable Diffusion XL as one array, beside its parts.

XL's U-Net (Podell et al., arXiv:2307.01952) is told a text as embeddings of every token, a pooled
vector of the whole text, and six sizes (section 2.2). They travel as one array: data sets, batches,
guidance and edits then treat them as the embeddings of any other model. The first rows hold the
sizes and the pooled vector, filled up with zeros; the embeddings follow.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.errors import ConfigError

# Original height and width, top and left of the crop, target height and width. XL's refiner, which
# is told five numbers, is not supported.
NUM_SIZES = 6


class TextAndSizes(NamedTuple):
  """What XL's U-Net is told.

  Attributes:
    embeddings: (..., L, D), one vector per token.
    pooled: (..., P), one vector of the whole text.
    sizes: (..., 6), pixels: height and width of the original picture, top and left of the crop that
      is shown, height and width of the target. An original height of 0 means that the picture is
      shown as a whole: both sizes are the picture's own, and the crop is at (0, 0).
  """

  embeddings: jax.Array
  pooled: jax.Array
  sizes: jax.Array


def num_rows(pooled_dim: int, width: int) -> int:
  """Returns the number of rows (of `width` values) before the embeddings."""
  return -(-(NUM_SIZES + pooled_dim) // width)


def pack(text: jax.Array, pooled: jax.Array, sizes: jax.Array | None = None) -> jax.Array:
  """Joins embeddings (..., L, D), pooled (..., P) and sizes (..., 6) to (..., rows + L, D).

  Without sizes every picture is shown as a whole (see `TextAndSizes`).
  """
  *lead, _, width = text.shape
  if sizes is None:
    sizes = jnp.zeros((*lead, NUM_SIZES), text.dtype)
  told = jnp.concatenate([jnp.asarray(sizes, text.dtype), pooled.astype(text.dtype)], axis=-1)
  rows = num_rows(pooled.shape[-1], width)
  told = jnp.pad(told, [(0, 0)] * len(lead) + [(0, rows * width - told.shape[-1])])
  return jnp.concatenate([told.reshape(*lead, rows, width), text], axis=-2)


def unpack(cond: jax.Array, pooled_dim: int) -> TextAndSizes:
  """Undoes `pack` for a pooled vector of `pooled_dim` values."""
  *lead, length, width = cond.shape
  rows = num_rows(pooled_dim, width)
  if length <= rows:
    raise ConfigError(
      f"cond {cond.shape} holds no text: Stable Diffusion XL takes what its `embed` returns, or "
      "`conditioning.pack`"
    )
  told = cond[..., :rows, :].reshape(*lead, rows * width)
  end = NUM_SIZES + pooled_dim
  return TextAndSizes(cond[..., rows:, :], told[..., NUM_SIZES:end], told[..., :NUM_SIZES])


def with_sizes(
  cond: np.ndarray | jax.Array,
  original: tuple[int, int],
  *,
  crop: tuple[int, int] = (0, 0),
  target: tuple[int, int] | None = None,
) -> jax.Array:
  """Returns a conditioning that tells the U-Net other sizes; for any call that takes `cond`.

  Args:
    cond: (..., rows + L, D), from the `embed` of a Stable Diffusion XL or from `pack`.
    original: height and width of the picture before it was cut or resized, pixels, at least 1.
    crop: top and left of the part that is shown, pixels.
    target: height and width of the part that is shown; None for `original`.

  Raises:
    ConfigError: the original size is not positive.
  """
  if min(original) < 1:
    raise ConfigError(f"the original size of a picture is at least 1x1, not {original}")
  sizes = jnp.asarray([*original, *crop, *(target or original)], jnp.float32)
  return jnp.asarray(cond).at[..., 0, :NUM_SIZES].set(sizes)


def resolved(sizes: jax.Array, height: int, width: int) -> jax.Array:
  """Replaces sizes (B, 6) of pictures shown as a whole by those of a picture height x width."""
  own = jnp.asarray([height, width, 0, 0, height, width], jnp.float32)
  return jnp.where(sizes[:, :1] > 0, sizes.astype(jnp.float32), own)
