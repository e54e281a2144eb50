"""What a platform does to an upload: it is shrunk, and stored as JPEG; here it is enlarged again.

Platforms limit the longer side (to 1080 or 2048 pixels, for example) and re-encode. A picture that
an infringer takes from there is small; it is enlarged to its old size so that studies compare
pictures of one size, by the same filter.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.ops import image
from udp_jax.purifiers.base import Purifier, no_params
from udp_jax.purifiers.jpeg import jpeg


def platform_upload(
  model: DiffusionModel | None,
  *,
  factor: float = 0.5,
  quality: int = 80,
  resampling: str = "lanczos3",
) -> Purifier:
  """Shrinks, compresses by JPEG (4:2:0, Pillow's), and enlarges.

  Args:
    model: unused.
    factor: size of the stored picture as a share of the upload's, above 0 and at most 1.
    quality: quality of the JPEG file, 1 to 100.
    resampling: "linear", "cubic", "lanczos3" or "lanczos5", for both directions.

  Raises:
    ConfigError: the resampling is unknown.

  >>> images, keys = jnp.full((1, 16, 16, 3), 0.5), jax.random.split(jax.random.key(0), 1)
  >>> platform_upload(None).apply({}, keys, images).mean().round(2).tolist()
  0.5
  """
  del model
  methods = tuple(m for m in image.RESIZE_METHODS if m not in ("box", "nearest"))
  if resampling not in methods:
    raise ConfigError(
      f"purifier platform_upload: resampling {resampling!r} is not one of {', '.join(methods)}"
    )
  stored = jpeg(None, quality=quality)

  def apply(params: Params, keys: jax.Array, images: jax.Array) -> jax.Array:
    height, width = images.shape[1:3]
    small = (max(1, round(factor * height)), max(1, round(factor * width)))
    shrunk = jnp.clip(image.resize(images, small, method=resampling), 0.0, 1.0)
    taken = stored.apply(params, keys, shrunk)
    return jnp.clip(image.resize(taken, (height, width), method=resampling), 0.0, 1.0)

  return Purifier(no_params, apply)
