"""Inpainting: a masked region made anew towards a prompt, the rest kept."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from udp_jax.errors import ConfigError
from udp_jax.models.base import Cond, DiffusionModel, Params
from udp_jax.ops.chain import Known
from udp_jax.randomness import normal_each, split_each
from udp_jax.threats.base import Edit
from udp_jax.threats.editing import COMMON, Start
from udp_jax.threats.finetuning import guided
from udp_jax.threats.passing import passes_on


@passes_on(Start, *COMMON)
def inpaint(
  model: DiffusionModel,
  *,
  strength: float = 1.0,
  guidance_scale: float = 7.5,
  inpainting_unet: bool = False,
  **options: Any,
) -> Edit:
  """Inpainting.

  With `inpainting_unet`, for the models of 9 channels (Rombach et al., arXiv:2112.10752, section
  4.5), which see the mask and the rest of the picture. Without, any model: after every step, what
  is to be kept is put back at that step's noise (Lugmayr et al., arXiv:2201.09865, equation 8).
  Outside the mask the result is the given picture, exactly.

  Args:
    model: what edits.
    strength: in (0, 1]: 1 starts the region from pure noise, less from the picture's own content.
    guidance_scale: of classifier-free guidance; 1 for none.
    inpainting_unet: the U-Net has the 9 channels of an inpainting model.
    **options: of `editing.Start`, which are the same for all edits.

  Raises:
    ConfigError: an unknown sampler, or a strength or a number of steps that cannot be used; by
      `apply`, missing masks.
  """
  start = Start(model, strength=strength, **options)

  def apply(
    keys: jax.Array,
    params: Params,
    images: jax.Array,
    cond: Cond = None,
    uncond: Cond = None,
    masks: jax.Array | None = None,
  ) -> jax.Array:
    if masks is None:
      raise ConfigError("inpainting needs masks: 1 where the picture is made anew")
    key_encode, key_masked, key_noise = split_each(keys, 3)
    x0 = model.encode(params, images, key_encode)
    noise = normal_each(key_noise, x0.shape[1:])
    x_t = noise if strength == 1.0 else start.noised(x0, noise)
    small = _smaller(masks, x0.shape)
    held = model.hold(params)
    if inpainting_unet:
      # Grey, 0 in the VAE's range, where the picture is made anew.
      hidden = jnp.where(masks > 0.5, 0.5, images)
      extra = {"mask": small, "masked_latents": model.encode(params, hidden, key_masked)}
      predict = _guided_inpainting(model, held, cond, uncond, extra, guidance_scale)
      x0 = start.denoised(keys, predict, x_t)
    else:
      predict = guided(model, held, cond, uncond, len(images), guidance_scale)
      known = Known(x0, small, noise)
      x0 = start.denoised(keys, predict, x_t, known=known)
    return masks * model.decode(held, x0) + (1.0 - masks) * images

  return Edit(jax.jit(apply), needs_masks=True)


def _smaller(masks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Masks (B, H, W, 1) at the size of x0, 1 where any of a cell's pixels is to be made anew."""
  count, height, width = shape[:3]
  cells = masks.reshape(count, height, masks.shape[1] // height, width, -1)
  return (jnp.max(cells, axis=(2, 4)) > 0.5).astype(jnp.float32)[..., None]


def _guided_inpainting(
  model: DiffusionModel, params: Params, cond: Cond, uncond: Cond, extra: dict, scale: float
):
  """As `finetuning.guided`, for a U-Net that is told the mask and the masked picture as well."""

  def apply(params: Params, x_t: jax.Array, at: jax.Array, text: Any) -> jax.Array:
    doubled = len(x_t) // len(extra["mask"])
    told = {name: jnp.concatenate([value] * doubled) for name, value in extra.items()}
    return model.apply(params, x_t, at, {"text": text, **told})

  count = len(extra["mask"])
  return guided(model._replace(apply=apply), params, cond, uncond, count, scale)
