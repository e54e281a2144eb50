"""Inpainting: repaints a masked region towards a prompt, and keeps the rest."""

from __future__ import annotations

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from udp_jax import registry
from udp_jax.errors import ConfigError
from udp_jax.models.base import Cond, DiffusionModel, Params
from udp_jax.models.editing import PartialChain
from udp_jax.models.sampling import Sampling, guided
from udp_jax.ops.chain import Known
from udp_jax.ops.keys import normal_each, split_each
from udp_jax.threats.base import Edit
from udp_jax.threats.finetuning import SAMPLING


def inpaint(
  model: DiffusionModel,
  *,
  strength: float = 1.0,
  sampling: Annotated[Sampling, SAMPLING] = Sampling(),
  inpainting_unet: bool = False,
) -> Edit:
  """Repaints the masked region of each picture.

  `inpainting_unet` is for models with 9 channels (Rombach et al., arXiv:2112.10752, section 4.5),
  which see the mask and the rest of the picture; the mask becomes as small as the latents by the
  nearest pixel, the upper left one of a cell, as in diffusers' pipeline. Otherwise any model works:
  after every step, the kept region is restored with the noise of that step (Lugmayr et al.,
  arXiv:2201.09865, equation 8). Outside the mask the result is exactly the given picture.

  Args:
    model: the model that edits.
    strength: share of the noise that is added, in (0, 1]: 1 starts the region from pure noise, less
      from the picture's own content.
    sampling: how the region is denoised; the empty prompt comes with each call.
    inpainting_unet: whether the U-Net has the 9 channels of an inpainting model.

  Raises:
    ConfigError: the sampler is unknown, or the strength or number of steps cannot be used; `apply`
      raises it for missing masks.

  >>> from udp_jax.models import toy
  >>> inpaint(toy.on_pixels(), sampling=Sampling(sample_steps=10)).needs_masks
  True
  """
  registry.only("inpaint", sampling, SAMPLING)
  start, guidance_scale = PartialChain(model, sampling, strength), sampling.guidance_scale

  def apply(keys, params, images, cond=None, uncond=None, masks=None) -> jax.Array:
    if masks is None:
      raise ConfigError("inpainting needs masks: 1 where the picture is made anew")
    key_encode, key_masked, key_noise = split_each(keys, 3)
    x0 = model.encode(params, images, key_encode)
    noise = normal_each(key_noise, x0.shape[1:])
    x_t = noise if strength == 1.0 else start.noised(x0, noise)
    small = (_nearest if inpainting_unet else _smaller)(masks, x0.shape)
    held = model.hold(params)
    if inpainting_unet:
      # Grey, which is 0 in the VAE's range, where the picture is repainted.
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
  """Masks (B, H, W, 1) at the size of x0, 1 where any pixel of a cell is repainted."""
  count, height, width = shape[:3]
  cells = masks.reshape(count, height, masks.shape[1] // height, width, -1)
  return (jnp.max(cells, axis=(2, 4)) > 0.5).astype(jnp.float32)[..., None]


def _nearest(masks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Masks (B, H, W, 1) at the size of x0 by PyTorch's nearest interpolation, 1 above a half."""
  rows, columns = masks.shape[1] // shape[1], masks.shape[2] // shape[2]
  return (masks[:, ::rows, ::columns] > 0.5).astype(jnp.float32)


def _guided_inpainting(
  model: DiffusionModel, params: Params, cond: Cond, uncond: Cond, extra: dict, scale: float
):
  """Like `sampling.guided`, for a U-Net that also gets the mask and the masked picture."""

  def apply(params: Params, x_t: jax.Array, at: jax.Array, text: Any) -> jax.Array:
    doubled = len(x_t) // len(extra["mask"])
    told = {name: jnp.concatenate([value] * doubled) for name, value in extra.items()}
    return model.apply(params, x_t, at, {"text": text, **told})

  count = len(extra["mask"])
  return guided(model._replace(apply=apply), params, cond, uncond, count, scale)
