"""JPEG: the real codec, or the differentiable one of `ops.jpeg`."""

from __future__ import annotations

import io
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.ops import jpeg as jpeg_ops
from udp_jax.purifiers.base import Purifier, no_params

CODECS = ("libjpeg", "differentiable")


def jpeg(
  model: DiffusionModel | None,
  *,
  quality: int | Sequence[int] = 75,
  codec: str = "libjpeg",
  chroma_subsampling: bool = True,
) -> Purifier:
  """Compresses and decompresses every picture; published studies use quality 75.

  Args:
    model: unused.
    quality: 1 to 100; of several values, every picture's key picks one.
    codec: "libjpeg" is Pillow's, on the host; "differentiable" is `ops.jpeg`, on the device, whose
      result is slightly different and has gradients.
    chroma_subsampling: True for 4:2:0, as in nearly every JPEG file; else 4:4:4.

  Raises:
    ConfigError: the codec is unknown.

  >>> images, keys = jnp.full((1, 16, 16, 3), 0.5), jax.random.split(jax.random.key(0), 1)
  >>> jpeg(None, quality=75).apply({}, keys, images).mean().round(2).tolist()
  0.5
  """
  del model
  qualities = (quality,) if isinstance(quality, int) else tuple(quality)
  if codec not in CODECS:
    raise ConfigError(f"purifier jpeg: codec {codec!r} is not one of {', '.join(CODECS)}")

  def on_host(images: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    levels = np.clip(np.floor(255.0 * np.asarray(images) + 0.5), 0, 255).astype(np.uint8)
    pairs = zip(levels, np.asarray(chosen))
    return np.stack([_through_file(x, int(q), chroma_subsampling) for x, q in pairs])

  def apply(params: Params, keys: jax.Array, images: jax.Array) -> jax.Array:
    del params
    picked = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(qualities)))(keys)
    chosen = jnp.asarray(qualities)[picked]
    if codec == "differentiable":
      return jpeg_ops.jpeg(images, chosen, chroma_subsampling=chroma_subsampling)
    shape = jax.ShapeDtypeStruct(images.shape, jnp.float32)
    return jax.pure_callback(on_host, shape, images, chosen, vmap_method="sequential")

  return Purifier(no_params, apply)


def _through_file(pixels: np.ndarray, quality: int, chroma_subsampling: bool) -> np.ndarray:
  buffer = io.BytesIO()
  subsampling = "4:2:0" if chroma_subsampling else "4:4:4"
  Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
  with Image.open(buffer, formats=("JPEG",)) as image:
    return np.asarray(image.convert("RGB"), np.float32) * np.float32(1.0 / 255.0)
