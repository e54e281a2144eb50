"""Edits pictures: a denoising chain that starts from a picture, and img2img."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax

from udp_jax.errors import ConfigError
from udp_jax.models import sampling as sampling_lib
from udp_jax.models.base import Cond, DiffusionModel, Params
from udp_jax.models.sampling import Sampling, guided, make_chain
from udp_jax.ops import chain as chain_lib
from udp_jax.ops import schedules
from udp_jax.ops.keys import normal_each, split_each, stream


class EditFn(Protocol):
  """Edits pictures with a model."""

  def __call__(
    self,
    keys: jax.Array,
    params: Params,
    images: jax.Array,
    cond: Cond = None,
    uncond: Cond = None,
    masks: jax.Array | None = None,
  ) -> jax.Array:
    """Edits a batch; a picture's result does not depend on the batch around it.

    Args:
      keys: (B,), one key per picture.
      params: parameters of the model.
      images: (B, H, W, 3), float in [0, 1].
      cond: one prompt per picture, embeddings (B, L, D) or token ids (B, L); None for a model
        without prompts.
      uncond: the empty or negative prompt, (1, ...) or (B, ...), required for classifier-free
        guidance.
      masks: (B, H, W, 1) in [0, 1], 1 where the picture is regenerated; None regenerates all of it.

    Returns:
      Pictures (B, H, W, 3), float32 in [0, 1].
    """


class PartialChain:
  """The partial denoising chain that all edits share: from a noised picture to a picture.

  Args:
    model: the model that edits.
    sampling: the whole chain, of which strength * sample_steps steps run; `guidance_scale` and
      `uncond_ids` are ignored.
    strength: noise level at the start, as a fraction of the chain in (0, 1].

  Attributes:
    timestep: the timestep to which the picture is noised.
  """

  def __init__(self, model: DiffusionModel, sampling: Sampling, strength: float):
    """Checks the options of an edit.

    Raises:
      ConfigError: the sampler is unknown, or the strength or number of steps is invalid.
    """
    self._model = model
    self._chain = make_chain(model, sampling)
    try:
      self._first = chain_lib.start_step(sampling.sample_steps, strength)
    except ValueError as error:
      raise ConfigError(str(error)) from error
    self.timestep = int(sampling_lib.visited(model, sampling)[self._first])

  def noised(self, x0: jax.Array, noise: jax.Array) -> jax.Array:
    """Noises x0 (B, ...) with noise (B, ...) to the chain's first timestep."""
    return schedules.add_noise(self._model.schedule, x0, noise, self.timestep)

  def denoised(
    self, keys: jax.Array, predict: Callable[..., jax.Array], x_t: jax.Array, **more: Any
  ) -> jax.Array:
    """Denoises x_t (B, ...) to x0; keys (B,), one per picture, for samplers that draw."""
    keys = jax.vmap(lambda key: stream(key, "chain"))(keys)
    return self._chain(keys, predict, x_t, first_step=self._first, **more)


def img2img(model: DiffusionModel, sampling: Sampling, strength: float) -> EditFn:
  """SDEdit: noises a picture part of the way and denoises it towards the prompt.

  Args:
    model: the model that edits.
    sampling: options of the sampler; the empty prompt comes with each call, not from `uncond_ids`.
    strength: noise level at the start, in (0, 1]; 1 keeps almost nothing of the picture.

  Returns:
    The compiled edit, which ignores masks.

  Raises:
    ConfigError: the sampler is unknown, or the strength or number of steps is invalid.
  """
  start = PartialChain(model, sampling, strength)

  def apply(keys, params, images, cond=None, uncond=None, masks=None) -> jax.Array:
    del masks  # The whole picture is regenerated.
    key_encode, key_noise = split_each(keys, 2)
    x0 = model.encode(params, images, key_encode)
    x_t = start.noised(x0, normal_each(key_noise, x0.shape[1:]))
    held = model.hold(params)
    predict = guided(model, held, cond, uncond, len(images), sampling.guidance_scale)
    return model.decode(held, start.denoised(keys, predict, x_t))

  return jax.jit(apply)
