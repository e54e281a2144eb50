"""What the threats that fine-tune share: the training of theta, and sampling with guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from udp_jax import objectives, training
from udp_jax.errors import ConfigError
from udp_jax.models import noise_scheduler
from udp_jax.models.base import Cond, DiffusionModel, Params
from udp_jax.models.trainable import Theta, Trainable
from udp_jax.objectives import Objective
from udp_jax.ops import dpm_solver, guidance, samplers, timesteps
from udp_jax.randomness import split_each
from udp_jax.threats.base import Threat, frozen_params
from udp_jax.training import Batch, TrainState

DECAYS = ("constant", "cosine")
SAMPLERS = ("ddim", "ddpm", "dpm_solver_pp_2m")
# Options of `fine_tune` that every threat passes on, see `passing.passes_on`.
COMMON = (
  *("train_steps", "warmup_steps", "decay", "weight_decay", "clip_norm"),
  *("sample_steps", "guidance_scale", "sampler", "scheduler"),
)


def learning_rates(
  train_steps: int, learning_rate: float, *, warmup_steps: int, decay: str
) -> optax.Schedule:
  """A linear warm-up from 0, then a constant rate, or a cosine to 0 over the rest.

  Raises:
    ConfigError: unknown decay.
  """
  if decay not in DECAYS:
    raise ConfigError(f"unknown learning-rate decay {decay!r}; known: {', '.join(DECAYS)}")
  rest = max(1, train_steps - warmup_steps)
  after: optax.Schedule = (
    optax.constant_schedule(learning_rate)
    if decay == "constant"
    else optax.cosine_decay_schedule(learning_rate, rest)
  )
  warmup = optax.linear_schedule(0.0, learning_rate, max(1, warmup_steps))
  return optax.join_schedules([warmup, after], [warmup_steps]) if warmup_steps else after


def fine_tune(
  model: DiffusionModel,
  trainable: Trainable,
  *,
  train_steps: int,
  learning_rate: float,
  warmup_steps: int = 0,
  decay: str = "constant",
  weight_decay: float = 1e-2,
  clip_norm: float = 1.0,
  ema_decay: float = 0.0,
  flip: bool = False,
  prior_weight: float = 0.0,
  sample_steps: int = 50,
  guidance_scale: float = 7.5,
  sampler: str = "ddim",
  scheduler: Mapping[str, Any] | None = None,
  trains_text: bool = False,
  save: Callable[[Path, Theta], Path] | None = None,
) -> Threat:
  """A threat that trains theta of a model by its denoising loss (diffusers' training scripts).

  AdamW, timesteps uniform, one caption drawn from each picture's at every step.

  Args:
    model: what is fine-tuned.
    trainable: theta of its parameters.
    train_steps: optimiser steps.
    learning_rate: of AdamW, after the warm-up.
    warmup_steps: linear warm-up from 0.
    decay: "constant", or "cosine" to 0 over the rest.
    weight_decay: of AdamW.
    clip_norm: global norm at which the gradient is clipped.
    ema_decay: of the averaged theta that is kept; 0 keeps no average.
    flip: train on pictures flipped left to right half of the time.
    prior_weight: of class pictures; the loss is then that of the pictures plus so much of theirs.
    sample_steps: of the sampler.
    guidance_scale: of samples; 1 for none.
    sampler: "ddim", "ddpm" or "dpm_solver_pp_2m".
    scheduler: the model's scheduler_config.json, for where its timesteps lie.
    trains_text: theta reaches into the text encoder, so prompts must come as token ids.
    save: see `Threat`.

  Raises:
    ConfigError: an unknown decay or sampler, or unusable sampling options.
  """
  rate = learning_rates(train_steps, learning_rate, warmup_steps=warmup_steps, decay=decay)
  tx = optax.chain(
    optax.clip_by_global_norm(clip_norm), optax.adamw(rate, weight_decay=weight_decay)
  )
  uniform = timesteps.uniform(len(model.schedule.alphas_cumprod))
  objective = one_caption(objectives.denoising(model, uniform, dropout=True))
  objective = objectives.flipped(objective) if flip else objective
  if prior_weight:
    # The mean over a step's weights 1 and prior_weight, times their sum: Ruiz et al., equation 2.
    objective = objectives.weighted((1.0 + prior_weight, objective))

  def init(key: jax.Array, params: Params | None) -> TrainState:
    theta = trainable.init(key, frozen_params(params))
    return training.init_state(theta, tx, ema=ema_decay > 0)

  def update(key: jax.Array, state: TrainState, data: Batch, num_steps: int, params=None):
    if trains_text and not _are_ids(data.cond):
      raise ConfigError("this threat trains the text side: give token ids, not embeddings")

    def of_theta(theta: Theta, *rest: Any):
      return objective(trainable.merge(theta, frozen_params(params)), *rest)

    step = training.make_update(of_theta, tx, ema_decay=ema_decay)
    return training.train_steps(step, key, state, data, num_steps)

  def final(state: TrainState) -> Theta:
    return state.params if state.ema_params is None else state.ema_params

  return Threat(
    init=jax.jit(init),
    update=jax.jit(update, static_argnums=3, donate_argnums=1),
    sample=make_sample(
      model,
      sampler=sampler,
      sample_steps=sample_steps,
      guidance_scale=guidance_scale,
      scheduler=scheduler,
    ),
    final=final,
    train_steps=train_steps,
    trainable=trainable,
    needs_params=True,
    needs_token_ids=trains_text,
    prior_weight=prior_weight,
    save=save,
  )


def one_caption(objective: Objective) -> Objective:
  """Draws one of each picture's captions, token ids (B, K, L), before `objective` sees them."""

  def drawn(params: Params, images: jax.Array, cond: Cond, keys: jax.Array):
    if _are_ids(cond) and cond.ndim == 3:
      key_caption, keys = split_each(keys, 2)
      number = jax.vmap(lambda key: jax.random.randint(key, (), 0, cond.shape[1]))(key_caption)
      cond = jax.vmap(lambda ids, i: ids[i])(cond, number)
    return objective(params, images, cond, keys)

  return drawn


def make_sample(
  model: DiffusionModel,
  *,
  sampler: str = "ddim",
  sample_steps: int = 50,
  guidance_scale: float = 7.5,
  eta: float = 0.0,
  scheduler: Mapping[str, Any] | None = None,
) -> Callable[..., jax.Array]:
  """The jitted `Threat.sample` of a model.

  Args:
    model: what samples.
    sampler: "ddim", "ddpm" or "dpm_solver_pp_2m".
    sample_steps: of the sampler.
    guidance_scale: of classifier-free guidance (arXiv:2207.12598); 1 for none. Unconditional models
      take none.
    eta: of DDIM; 0 is deterministic.
    scheduler: the model's scheduler_config.json, for where its timesteps lie.

  Raises:
    ConfigError: an unknown sampler, or more steps than the schedule has.
  """
  chain = make_chain(model, sampler, sample_steps, eta=eta, scheduler=scheduler)

  def sample(
    key: jax.Array, params: Params, num_samples: int, cond: Cond = None, uncond: Cond = None
  ) -> jax.Array:
    held = model.hold(params)
    predict = guided(model, held, cond, uncond, num_samples, guidance_scale)
    return model.decode(held, chain(key, predict, (num_samples, *model.shape)))

  return jax.jit(sample, static_argnums=2)


def make_chain(
  model: DiffusionModel,
  sampler: str,
  sample_steps: int,
  *,
  eta: float = 0.0,
  scheduler: Mapping[str, Any] | None = None,
) -> Callable[..., jax.Array]:
  """(key, predict, x_init or its shape, **options of the sampler) -> x0; see `make_sample`.

  Raises:
    ConfigError: see `make_sample`, and an `eta` for another sampler than "ddim".
  """
  if sampler not in SAMPLERS:
    raise ConfigError(f"unknown sampler {sampler!r}; known: {', '.join(SAMPLERS)}")
  if eta and sampler != "ddim":
    raise ConfigError(f"eta is an option of ddim, not of {sampler}")
  options = timestep_options(scheduler or {}, sampler)
  try:
    placed = placement(sampler, scheduler)
    samplers.spaced_timesteps(model.schedule.num_steps, sample_steps, **placed)
  except ValueError as error:
    raise ConfigError(f"sample_steps: {error}") from error
  function: Callable[..., jax.Array] = (
    dpm_solver.dpm_solver_pp_2m if sampler == "dpm_solver_pp_2m" else getattr(samplers, sampler)
  )
  if sampler == "ddim":
    options["eta"] = eta
  # Latents have no bounds; pixels do.
  options |= {"num_steps": sample_steps, "clip_sample": model.shape == model.image_shape}

  def chain(key: jax.Array, predict: Callable, x_init: Any, **more: Any) -> jax.Array:
    return function(key, predict, model.schedule, x_init, **options, **more)

  return chain


def placement(sampler: str, scheduler: Mapping[str, Any] | None) -> dict[str, Any]:
  """Options of `samplers.spaced_timesteps` for the timesteps that a sampler visits."""
  options = timestep_options(scheduler or {}, sampler)
  placed = {name: options[name] for name in ("spacing", "steps_offset")}
  return placed | {"skip_last": sampler == "dpm_solver_pp_2m"}


def timestep_options(scheduler: Mapping[str, Any], sampler: str) -> dict[str, Any]:
  """Where a model's timesteps lie, from its scheduler_config.json, else the sampler's defaults."""
  options = noise_scheduler.sampler_options(scheduler, sampler, latent=True)
  del options["clip_sample"]  # By the kind of model, see `make_chain`.
  return options


def guided(
  model: DiffusionModel, params: Params, cond: Cond, uncond: Cond, count: int, scale: float
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """The `predict` of a sampler: prompts embedded once, guided where there are any.

  Raises:
    ConfigError: guidance without the empty or negative prompt.
  """

  def embedded(given: Any) -> Any:
    if given is None:
      return None
    given = model.embed(params, given) if _are_ids(given) and model.embed else given
    return jnp.broadcast_to(given, (count, *given.shape[1:]))

  def denoise(x_t: jax.Array, at: jax.Array, cond: Any) -> jax.Array:
    return model.apply(params, x_t, at, cond)

  if cond is None:
    return lambda x_t, at: denoise(x_t, at, None)
  if scale != 1.0 and uncond is None:
    raise ConfigError("guidance needs `uncond`: the empty prompt's ids or embeddings")
  return guidance.guided(denoise, embedded(cond), embedded(uncond), scale=scale)


def _are_ids(cond: Any) -> bool:
  return cond is not None and jnp.issubdtype(jnp.result_type(cond), jnp.integer)
