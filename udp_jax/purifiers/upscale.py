"""Enlarges pictures by RealESRGAN and shrinks them back: the network repaints what it finds.

Upscalers are what people have at hand who train on other people's pictures; `noisy_upscaling` adds
noise first. The network is RealESRGAN x4plus (`models.realesrgan`).

Differences from common use: the result is shrunk to the old size at once, as studies compare
pictures of one size; and tiles blend, where the published tool sets them side by side.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from udp_jax.errors import ConfigError
from udp_jax.models import large_pictures, realesrgan
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.ops import image
from udp_jax.purifiers.base import Purifier

# What a tile sees beyond what is kept of it; the published tool takes 10 pixels.
_CONTEXT = 16


def upscale(
  model: DiffusionModel | None,
  *,
  tile_size: int = 192,
  resampling: str = "box",
  weights: str | realesrgan.Params = "",
) -> Purifier:
  """Enlarges to four times the size and shrinks back.

  Args:
    model: unused.
    tile_size: pictures up to this many pixels a side are enlarged whole, larger ones in overlapping
      tiles of it; at least 64. Memory grows with its area.
    resampling: how pictures are shrunk: "box" takes means of 4x4 pixels; or "linear", "cubic",
      "lanczos3" or "lanczos5".
    weights: path of the `.bin` file, with its `.param` file beside it; "" for the installed
      package's; or parameters, for other networks of this layout.

  Raises:
    ConfigError: the resampling is unknown.
    MissingDataError: the package with the weights is not installed.
    BadDataError: a file is not the published one.

  >>> upscale(None, resampling="nearest")
  Traceback (most recent call last):
  udp_jax.errors.ConfigError: purifier upscale: resampling 'nearest' is not one of box, linear, ...
  """
  del model
  methods = tuple(m for m in image.RESIZE_METHODS if m != "nearest")
  if resampling not in methods:
    raise ConfigError(
      f"purifier upscale: resampling {resampling!r} is not one of {', '.join(methods)}"
    )
  params = realesrgan.load(weights or None) if isinstance(weights, str) else weights
  windows = large_pictures.Windows(tile_size, _CONTEXT, blend=_CONTEXT)

  def init(key: jax.Array, model_params: Params | None = None) -> Params:
    del key, model_params
    return params

  def apply(params: Params, keys: jax.Array, images: jax.Array) -> jax.Array:
    del keys

    def there_and_back(x: jax.Array) -> jax.Array:
      large = jnp.clip(realesrgan.upscale(params, x), 0.0, 1.0)
      return image.resize(large, (x.shape[1], x.shape[2]), method=resampling)

    return jnp.clip(large_pictures.apply(there_and_back, images, windows), 0.0, 1.0)

  return Purifier(init, apply)
