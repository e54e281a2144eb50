"""Samples pictures from a model with a sampler's chain, guided by prompts if there are any."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from udp_jax.errors import ConfigError
from udp_jax.models import noise_scheduler
from udp_jax.models.base import Cond, DiffusionModel, Params
from udp_jax.ops import dpm_solver, guidance, samplers

SAMPLERS = ("ddim", "ddpm", "dpm_solver_pp_2m")


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Options for sampling pictures from a model, shared by threats and protections.

  Attributes:
    sample_steps: number of denoising steps in the whole chain.
    sampler: "ddim", "ddpm" or "dpm_solver_pp_2m".
    eta: share of fresh noise in a DDIM step; 0 is deterministic, 1 draws as much as DDPM.
    guidance_scale: strength of classifier-free guidance (arXiv:2207.12598); 1 for none. Models
      without prompts ignore it.
    scheduler: fields of the model's scheduler_config.json, which place its timesteps; None for
      diffusers' defaults.
    uncond_ids: (L,) token ids of the empty prompt, for methods that sample with guidance
      internally; others get the empty prompt with each call.
  """

  sample_steps: int = 50
  sampler: str = "ddim"
  eta: float = 0.0
  guidance_scale: float = 7.5
  scheduler: Mapping[str, Any] | None = None
  uncond_ids: Sequence[int] | None = None


class SampleFn(Protocol):
  """Draws pictures from a model."""

  def __call__(
    self, key: jax.Array, params: Params, num_samples: int, cond: Cond = None, uncond: Cond = None
  ) -> jax.Array:
    """Draws `num_samples` pictures.

    Args:
      key: random key for all draws.
      params: parameters of the model, with trained parts merged in.
      num_samples: number of pictures, static.
      cond: one prompt per picture, embeddings (num_samples, L, D) or token ids (num_samples, L);
        None for a model without prompts.
      uncond: the empty or negative prompt, (1, ...) or (num_samples, ...), required for
        classifier-free guidance.

    Returns:
      Pictures (num_samples, H, W, 3), float32 in [0, 1].
    """


def make_sample(model: DiffusionModel, sampling: Sampling) -> SampleFn:
  """Returns a jitted function that draws pictures from a model.

  Args:
    model: the model to sample from.
    sampling: sampling options; `uncond_ids` is ignored, as the empty prompt comes with each call.

  Raises:
    ConfigError: the sampler is unknown, or there are more steps than the schedule has.
  """
  chain = make_chain(model, sampling)

  def sample(
    key: jax.Array, params: Params, num_samples: int, cond: Cond = None, uncond: Cond = None
  ) -> jax.Array:
    held = model.hold(params)
    predict = guided(model, held, cond, uncond, num_samples, sampling.guidance_scale)
    return model.decode(held, chain(key, predict, (num_samples, *model.shape)))

  return jax.jit(sample, static_argnums=2)


def make_chain(model: DiffusionModel, sampling: Sampling) -> Callable[..., jax.Array]:
  """Returns a sampler's chain: (key, predict, x_init or its shape, **sampler options) -> x0.

  Raises:
    ConfigError: the sampler is unknown, there are more steps than the schedule has, or `eta` is set
      for another sampler than "ddim".
  """
  sampler = sampling.sampler
  if sampler not in SAMPLERS:
    raise ConfigError(f"unknown sampler {sampler!r}; known: {', '.join(SAMPLERS)}")
  if sampling.eta and sampler != "ddim":
    raise ConfigError(f"eta is an option of ddim, not of {sampler}")
  options = _timestep_options(sampling)
  try:
    visited(model, sampling)
  except ValueError as error:
    raise ConfigError(f"sample_steps: {error}") from error
  function: Callable[..., jax.Array] = (
    dpm_solver.dpm_solver_pp_2m if sampler == "dpm_solver_pp_2m" else getattr(samplers, sampler)
  )
  if sampler == "ddim":
    options["eta"] = sampling.eta
  # Clip pixels, which are bounded, but not latents.
  options |= {"num_steps": sampling.sample_steps, "clip_sample": model.shape == model.image_shape}
  arguments = samplers.arguments(sampler, options)

  def chain(key: jax.Array, predict: Callable, x_init: Any, **more: Any) -> jax.Array:
    return function(key, predict, model.schedule, x_init, **arguments, **more)

  return chain


def visited(model: DiffusionModel, sampling: Sampling) -> Any:
  """Returns (sample_steps,) int, the timesteps that the sampler visits, from noise to picture.

  Raises:
    ValueError: there are more steps than the schedule has.
  """
  options = _timestep_options(sampling)
  return samplers.spaced_timesteps(
    model.schedule.num_steps,
    sampling.sample_steps,
    spacing=options["spacing"],
    steps_offset=options["steps_offset"],
    skip_last=sampling.sampler == "dpm_solver_pp_2m",
  )


def _timestep_options(sampling: Sampling) -> dict[str, Any]:
  """Returns timestep options from the scheduler_config.json, else the sampler's defaults."""
  options = noise_scheduler.sampler_options(sampling.scheduler or {}, sampling.sampler, latent=True)
  del options["clip_sample"]  # `make_chain` decides this by the kind of model.
  return options


def guided(
  model: DiffusionModel, params: Params, cond: Cond, uncond: Cond, count: int, scale: float
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """Returns the `predict` of a sampler: embeds prompts once and applies guidance if any.

  Args:
    model: the model that denoises.
    params: parameters of the model, or the result of its `hold`.
    cond: prompts of the pictures, embeddings or token ids, (1, ...) or (count, ...), or None.
    uncond: the empty or negative prompt, in the same form.
    count: number of pictures.
    scale: strength of classifier-free guidance; 1 for none.

  Raises:
    ConfigError: guidance is on, but the empty or negative prompt is missing.
  """

  def embedded(given: Any) -> Any:
    if given is None:
      return None
    given = model.embed(params, given) if are_ids(given) and model.embed else given
    return jnp.broadcast_to(given, (count, *given.shape[1:]))

  def denoise(x_t: jax.Array, at: jax.Array, cond: Any) -> jax.Array:
    return model.apply(params, x_t, at, cond)

  if cond is None:
    return lambda x_t, at: denoise(x_t, at, None)
  if scale != 1.0 and uncond is None:
    raise ConfigError("guidance needs `uncond`: the empty prompt's ids or embeddings")
  return guidance.guided(denoise, embedded(cond), embedded(uncond), scale=scale)


def are_ids(cond: Any) -> bool:
  """Returns whether a conditioning holds token ids rather than embeddings."""
  return cond is not None and jnp.issubdtype(jnp.result_type(cond), jnp.integer)
