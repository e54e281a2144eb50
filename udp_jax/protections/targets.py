"""Pictures that targeted protections drive latents to: by formula, a file, or by style transfer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.data import images as image_files
from udp_jax.errors import ConfigError, MissingDataError
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.ops.image import quantise, to_float
from udp_jax.randomness import example_keys
from udp_jax.threats.img2img import img2img
from udp_jax.training import Batch

# Not a picture: the latents are zero.
ZERO = "zero"
# Stable Diffusion's: what its own folders say, wherever a protection samples.
SCHEDULER = {"steps_offset": 1, "set_alpha_to_one": False}


def picture(target: str, image_shape: tuple[int, int, int]) -> np.ndarray | None:
  """The picture that a protection's option `target` means.

  Args:
    target: a name of `PATTERNS`, "zero" (latents of zero), or the path of an image file, whose
      centre is cropped and resized.
    image_shape: (H, W, 3) of the protected pictures.

  Returns:
    float32 (H, W, 3) in [0, 1], or None for "zero".

  Raises:
    MissingDataError: there is no such file.
    BadDataError: the file is damaged.
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
  model: DiffusionModel,
  style_ids: Sequence[int] | None,
  *,
  strength: float,
  sample_steps: int,
  guidance_scale: float,
  uncond_ids: Sequence[int] | None,
) -> Callable[[jax.Array, Batch, Params], jax.Array]:
  """What a latent model makes of each picture when it is told of a style: SDEdit, `img2img`.

  AAAAAAsuka/Impress, style_transfer.py: Stable Diffusion 2.1 base, "Cubism by Picasso", strength
  0.4, guidance 7.5, 50 steps. Theirs writes pictures to files; ours are of 8 bits too.

  Args:
    model: makes the pictures.
    style_ids: (L,) token ids of the style's prompt.
    strength: in (0, 1]: how far towards noise.
    sample_steps: of the whole chain.
    guidance_scale: of classifier-free guidance; 1 for none.
    uncond_ids: (L,) token ids of the empty prompt, which guidance needs.

  Returns:
    (key, data, params) -> uint8 pictures (num_batches, B, H, W, 3); data leaves (num_batches, B,
    ...). A picture's draws depend on its number alone.

  Raises:
    ConfigError: a missing prompt, or a strength or number of steps that cannot be used.
  """
  if style_ids is None or (guidance_scale != 1.0 and uncond_ids is None):
    raise ConfigError(
      "target 'style_transfer' needs style_prompt (style_ids), and a model with a tokenizer"
    )
  edit = img2img(
    model,
    strength=strength,
    sample_steps=sample_steps,
    guidance_scale=guidance_scale,
    scheduler=SCHEDULER,
  )
  cond = np.asarray(style_ids, np.int32)[None]
  uncond = None if uncond_ids is None else np.asarray(uncond_ids, np.int32)[None]

  def make(key: jax.Array, data: Batch, params: Params) -> jax.Array:
    def one_batch(batch: Batch) -> jax.Array:
      keys = example_keys(key, 0, batch.ids)
      images = to_float(batch.images)
      return quantise(edit.apply(keys, params, images, jnp.asarray(cond), uncond))

    return jax.lax.map(one_batch, data)

  return make


def _grey(height: int, width: int) -> np.ndarray:
  return np.full((height, width, 3), 0.5)


def _pattern(height: int, width: int) -> np.ndarray:
  """Black and white: diagonal bars that change places from stripe to stripe.

  High contrast and repeated over the whole picture, as the picture of lettering that Mist aims at.
  """
  y, x = np.mgrid[:height, :width] / min(height, width)
  bars = np.sin(2 * np.pi * (6 * x + 3 * y))
  stripes = np.sin(2 * np.pi * 4 * y)
  return np.repeat((bars * stripes > 0)[..., None], 3, axis=-1).astype(np.float64)


def _facets(height: int, width: int, count: int = 40) -> np.ndarray:
  """Flat coloured facets with shading: what the nearest of some points says, after cubist painting.

  Points follow a low-discrepancy sequence, hues the golden angle: no randomness.
  """
  n = np.arange(1, count + 1)
  points = np.stack([(n * 0.7548776662) % 1, (n * 0.5698402910) % 1], axis=-1)
  y, x = np.mgrid[:height, :width]
  place = np.stack([(y + 0.5) / height, (x + 0.5) / width], axis=-1)
  # City-block distance has straight, angular borders.
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
