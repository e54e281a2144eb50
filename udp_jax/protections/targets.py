"""Target pictures of protections: from a formula, a file, or style transfer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.data import images as image_files
from udp_jax.data.batches import Batch
from udp_jax.errors import ConfigError, MissingDataError
from udp_jax.models import editing
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.models.sampling import Sampling
from udp_jax.ops.image import quantise, to_float
from udp_jax.ops.keys import example_keys

# Not a picture: latents of zero.
ZERO = "zero"
# Stable Diffusion's scheduler settings, as in its own folders, for protections that sample.
SCHEDULER = {"steps_offset": 1, "set_alpha_to_one": False}


def picture(target: str, image_shape: tuple[int, int, int]) -> np.ndarray | None:
  """Returns the picture for a protection's option `target`.

  Args:
    target: a name of `PATTERNS`, "zero" (latents of zero), or the path of an image file, whose
      centre is cropped and resized.
    image_shape: (H, W, 3), shape of the protected pictures.

  Returns:
    float32 (H, W, 3) in [0, 1], or None for "zero".

  Raises:
    MissingDataError: the file does not exist.
    BadDataError: the file is damaged.

  >>> picture("grey", (8, 8, 3)).mean(), picture("zero", (8, 8, 3))
  (np.float32(0.5), None)
  """
  height, width = image_shape[:2]
  if target == ZERO:
    return None
  if target in PATTERNS:
    return PATTERNS[target](height, width).astype(np.float32)
  if not Path(target).is_file():
    known = ", ".join([ZERO, *PATTERNS])
    raise MissingDataError(f"target {target!r} is no image file and none of: {known}")
  side = max(height, width)
  pixels = image_files.resize_picture(image_files.read_image(target), side).pixels
  top, left = (side - height) // 2, (side - width) // 2
  cut = pixels[top : top + height, left : left + width]
  return cut.astype(np.float32) / np.float32(255)


def style_transfer(
  model: DiffusionModel, style_ids: Sequence[int] | None, sampling: Sampling, strength: float
) -> Callable[[jax.Array, Batch, Params], jax.Array]:
  """Redraws each picture in a style with a latent model: SDEdit, `img2img`.

  After AAAAAAsuka/Impress, style_transfer.py: Stable Diffusion 2.1 base, "Cubism by Picasso",
  strength 0.4, guidance 7.5, 50 steps. Theirs writes pictures to files; ours are 8-bit too.

  Args:
    model: the model that makes the pictures.
    style_ids: (L,) token ids of the style's prompt.
    sampling: steps of the whole chain, `guidance_scale`, and the `uncond_ids` that guidance needs;
      the scheduler is Stable Diffusion's.
    strength: how far towards noise the chain starts, in (0, 1].

  Returns:
    (key, data, params) -> uint8 pictures (num_batches, B, H, W, 3); data leaves are (num_batches,
    B, ...). A picture's draws depend only on its number.

  Raises:
    ConfigError: a prompt is missing, or the strength or number of steps cannot be used.

  >>> from udp_jax.models import toy
  >>> make = style_transfer(toy.on_latents(), (1, 2), Sampling(10, guidance_scale=1.0), 0.4)
  >>> data = Batch(jnp.zeros((1, 2, 8, 8, 3), jnp.uint8), jnp.arange(2)[None], jnp.ones((1, 2)))
  >>> params = toy.on_latents().init(jax.random.key(0))
  >>> jax.eval_shape(make, jax.random.key(1), data, params).dtype
  dtype('uint8')
  """
  uncond_ids = sampling.uncond_ids
  if style_ids is None or (sampling.guidance_scale != 1.0 and uncond_ids is None):
    raise ConfigError(
      "target 'style_transfer' needs style_prompt (style_ids), and a model with a tokenizer"
    )
  edit = editing.img2img(model, dataclasses.replace(sampling, scheduler=SCHEDULER), strength)
  cond = np.asarray(style_ids, np.int32)[None]
  uncond = None if uncond_ids is None else np.asarray(uncond_ids, np.int32)[None]

  def make(key: jax.Array, data: Batch, params: Params) -> jax.Array:
    def one_batch(batch: Batch) -> jax.Array:
      keys = example_keys(key, 0, batch.ids)
      images = to_float(batch.images)
      return quantise(edit(keys, params, images, jnp.asarray(cond), uncond))

    return jax.lax.map(one_batch, data)

  return make


def _grey(height: int, width: int) -> np.ndarray:
  return np.full((height, width, 3), 0.5)


def _pattern(height: int, width: int) -> np.ndarray:
  """Black and white diagonal bars whose colours swap from stripe to stripe.

  High contrast, repeated over the whole picture, like the picture of lettering that Mist uses.
  """
  y, x = np.mgrid[:height, :width] / min(height, width)
  bars = np.sin(2 * np.pi * (6 * x + 3 * y))
  stripes = np.sin(2 * np.pi * 4 * y)
  return np.repeat((bars * stripes > 0)[..., None], 3, axis=-1).astype(np.float64)


def _facets(height: int, width: int, count: int = 40) -> np.ndarray:
  """Flat coloured facets with shading, as in cubist paintings: the Voronoi cells of some points.

  Points follow a low-discrepancy sequence, hues the golden angle: nothing is random.
  """
  n = np.arange(1, count + 1)
  points = np.stack([(n * 0.7548776662) % 1, (n * 0.5698402910) % 1], axis=-1)
  y, x = np.mgrid[:height, :width]
  place = np.stack([(y + 0.5) / height, (x + 0.5) / width], axis=-1)
  # City-block distance gives the cells straight, angular borders.
  distance = np.abs(place[:, :, None] - points).sum(-1)
  nearest = distance.argmin(-1)
  hue = 2 * np.pi * (n * 0.6180339887) % (2 * np.pi)
  colours = 0.5 + 0.4 * np.cos(hue[:, None] - 2 * np.pi / 3 * np.arange(3))
  shade = 1.0 - 0.5 * distance.min(-1) / max(distance.min(-1).max(), 1e-9)
  return np.clip(colours[nearest] * shade[..., None], 0.0, 1.0)


PATTERNS: dict[str, Callable[[int, int], np.ndarray]] = {
  "grey": _grey,
  "pattern": _pattern,
  "facets": _facets,
}
