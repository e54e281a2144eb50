"""Image-to-image editing: SDEdit (Meng et al., arXiv:2108.01073), diffusers' img2img pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from udp_jax.errors import ConfigError
from udp_jax.models.base import Cond, DiffusionModel, Params
from udp_jax.ops import chain as chain_lib
from udp_jax.ops import samplers, schedules
from udp_jax.randomness import normal_each, split_each
from udp_jax.threats.base import Edit
from udp_jax.threats.finetuning import guided, make_chain, timestep_options


def img2img(
  model: DiffusionModel,
  *,
  strength: float = 0.5,
  sample_steps: int = 50,
  guidance_scale: float = 7.5,
  scheduler: Mapping[str, Any] | None = None,
) -> Edit:
  """Noises a picture part of the way and denoises it by DDIM towards the prompt.

  Args:
    model: what edits.
    strength: in (0, 1]: how far towards noise; 1 keeps next to nothing of the picture.
    sample_steps: of the whole chain, of which strength * sample_steps are run.
    guidance_scale: of classifier-free guidance; 1 for none.
    scheduler: the model's scheduler_config.json, for where its timesteps lie.

  Raises:
    ConfigError: a strength or a number of steps that cannot be used.
  """
  chain = make_chain(model, "ddim", sample_steps, scheduler=scheduler)
  first, timestep = chain_start(model, sample_steps, strength, scheduler)

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
    noise = normal_each(key_noise, x0.shape[1:])
    x_t = schedules.add_noise(model.schedule, x0, noise, timestep)
    held = model.hold(params)
    predict = guided(model, held, cond, uncond, len(images), guidance_scale)
    # eta is 0: the chain draws nothing of its own, and its key does not matter.
    return model.decode(held, chain(jax.random.key(0), predict, x_t, first_step=first))

  return Edit(jax.jit(apply))


def chain_start(
  model: DiffusionModel, sample_steps: int, strength: float, scheduler: Mapping[str, Any] | None
) -> tuple[int, int]:
  """(index of the first step, its timestep) of a chain that starts from a picture.

  Raises:
    ConfigError: a strength outside (0, 1], or one that leaves no step.
  """
  options = timestep_options(scheduler or {}, "ddim")
  options.pop("set_alpha_to_one", None)
  try:
    first = chain_lib.start_step(sample_steps, strength)
  except ValueError as error:
    raise ConfigError(str(error)) from error
  steps = samplers.spaced_timesteps(model.schedule.num_steps, sample_steps, **options)
  return first, int(steps[first])
