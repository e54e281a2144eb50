"""Image-to-image editing: SDEdit (Meng et al., arXiv:2108.01073), diffusers' img2img pipeline."""

from __future__ import annotations

from typing import Any

import jax

from udp_jax.models.base import Cond, DiffusionModel, Params
from udp_jax.randomness import normal_each, split_each
from udp_jax.threats.base import Edit
from udp_jax.threats.editing import COMMON, Start
from udp_jax.threats.finetuning import guided
from udp_jax.threats.passing import passes_on


@passes_on(Start, *COMMON)
def img2img(
  model: DiffusionModel,
  *,
  strength: float = 0.5,
  guidance_scale: float = 7.5,
  **options: Any,
) -> Edit:
  """Noises a picture part of the way and denoises it towards the prompt.

  Args:
    model: what edits.
    strength: in (0, 1]: how far towards noise; 1 keeps next to nothing of the picture.
    guidance_scale: of classifier-free guidance; 1 for none.
    **options: of `editing.Start`, which are the same for all edits.

  Raises:
    ConfigError: an unknown sampler, or a strength or a number of steps that cannot be used.
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
    del masks  # The whole picture is made anew.
    key_encode, key_noise = split_each(keys, 2)
    x0 = model.encode(params, images, key_encode)
    x_t = start.noised(x0, normal_each(key_noise, x0.shape[1:]))
    held = model.hold(params)
    predict = guided(model, held, cond, uncond, len(images), guidance_scale)
    return model.decode(held, start.denoised(keys, predict, x_t))

  return Edit(jax.jit(apply))
