"""DiffPure (Nie et al., ICML 2022, arXiv:2205.07460): adds noise part of the way, then denoises.

The paper's model is a prior of its own, apart from the attacked one: give it as `purifier_model`
(`base.PRIORS`); without one, the attacked model purifies. Difference: the reverse process is DDPM's
ancestral chain over every timestep, where the paper solves the equivalent stochastic differential
equation. On latent models the method works on the latents, as in other publications.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from udp_jax.errors import ConfigError
from udp_jax.models.base import Cond, DiffusionModel, Params
from udp_jax.ops import chain, samplers, schedules
from udp_jax.ops.keys import normal_each, split_each
from udp_jax.purifiers import base
from udp_jax.purifiers.base import Purifier

LEARNED = "learned"


def diffpure(
  model: DiffusionModel | None,
  *,
  timestep: int = 100,
  variance: str = "",
  cond: Cond = None,
) -> Purifier:
  """Diffuses every picture to `timestep` and runs the reverse chain from there.

  Pictures must have the model's size; `gridpure` takes other sizes.

  Args:
    model: a diffusion model for pictures of this size.
    timestep: number of steps of noise, and of denoising. The paper's 0.1 of the schedule (CIFAR-10)
      is 100 of 1000, its 0.15 (ImageNet at 256x256) is 150; others use 300 on latents.
    variance: variance of the reverse steps, "fixed_small", "fixed_large", or "learned" for models
      that predict it; "" for "learned" if the model predicts it, else "fixed_small".
    cond: conditioning of the model for all pictures, (1, ...); None if the model takes none.

  Raises:
    ConfigError: the timestep is outside the schedule, or the variance does not fit. `apply` raises
      it for pictures of another size.

  >>> from udp_jax.models import toy
  >>> model, keys = toy.on_pixels(), jax.random.split(jax.random.key(0), 1)
  >>> params = model.init(jax.random.key(1))
  >>> method = diffpure(model, timestep=3)
  >>> method.apply(params, keys, jnp.full((1, 8, 8, 3), 0.5)).shape
  (1, 8, 8, 3)
  """
  model = base.need_model(model, "diffpure")
  variance = check(model, "diffpure", timestep, variance)

  def apply(params: Params, keys: jax.Array, images: jax.Array) -> jax.Array:
    if images.shape[1:] != model.image_shape:
      height, width, _ = model.image_shape
      raise ConfigError(
        f"pictures of {images.shape[1]}x{images.shape[2]} do not fit diffpure with a model of "
        f"{height}x{width}: resize them, or use gridpure"
      )
    held = model.hold(params)
    return noise_and_denoise(
      model, held, keys, images, timestep=timestep, variance=variance, cond=cond
    )

  return Purifier(base.model_params_only(model), apply, needs_model=True)


def check(model: DiffusionModel, name: str, timestep: int, variance: str) -> str:
  """Returns the variance that a model is used with.

  Args:
    model: the model that purifies.
    name: name of the purifier, for errors.
    timestep: number of steps of noise.
    variance: as for `diffpure`; "" is the model's default.

  Raises:
    ConfigError: the timestep is outside the model's schedule, or the variance is unknown, or
      learned by models that predict it only.

  >>> from udp_jax.models import toy
  >>> check(toy.on_pixels(), "diffpure", 50, "")
  'fixed_small'
  >>> check(toy.on_pixels(), "diffpure", 100, "fixed_small")
  Traceback (most recent call last):
  udp_jax.errors.ConfigError: purifier diffpure: timestep must be 1 to 50, got 100
  """
  if not 1 <= timestep <= model.schedule.num_steps:
    raise ConfigError(
      f"purifier {name}: timestep must be 1 to {model.schedule.num_steps}, got {timestep}"
    )
  learns = model.apply_learned is not None
  known = (*chain.VARIANCES, LEARNED) if learns else chain.VARIANCES
  variance = variance or (LEARNED if learns else chain.VARIANCES[0])
  if variance == LEARNED and not learns:
    raise ConfigError(f"purifier {name}: this model predicts no variance; it has none 'learned'")
  if variance not in known:
    raise ConfigError(f"purifier {name}: variance {variance!r} is not one of {', '.join(known)}")
  return variance


def noise_and_denoise(
  model: DiffusionModel,
  params: Params,
  keys: jax.Array,
  images: jax.Array,
  *,
  timestep: int,
  variance: str,
  cond: Cond,
  correct: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
  """Adds `timestep` steps of noise at once, then runs as many reverse steps.

  Args:
    model: a diffusion model for pictures of this size.
    params: the model's parameters, or the result of `hold` on them.
    keys: (B,), one per picture.
    images: (B, H, W, 3) in [0, 1].
    timestep: number of steps of noise, and of denoising.
    variance: variance of the reverse steps, from `check`.
    cond: conditioning of the model for all pictures, (1, ...); None if the model takes none.
    correct: changes every step's estimate of the clean pictures, in the model's range, before the
      step uses it.

  Returns:
    (B, H, W, 3) in [0, 1].

  >>> from udp_jax.models import toy
  >>> model, keys = toy.on_pixels(), jax.random.split(jax.random.key(0), 1)
  >>> params = model.init(jax.random.key(1))
  >>> images = jnp.full((1, 8, 8, 3), 0.5)
  >>> options = {"timestep": 2, "variance": "fixed_small", "cond": None}
  >>> noise_and_denoise(model, params, keys, images, **options).shape
  (1, 8, 8, 3)
  """
  encode_keys, start_keys, step_keys = split_each(keys, 3)
  x0 = model.encode(params, images, encode_keys)
  noise = normal_each(start_keys, x0.shape[1:])
  x_t = schedules.add_noise(model.schedule, x0, noise, timestep - 1)
  size = images.shape[0]
  each = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (size, *leaf.shape[1:])), cond)
  # Latents have no range to clip to.
  fixed = chain.VARIANCES[0] if variance == LEARNED else variance
  options = samplers.DDPM(fixed, clip_sample=model.reconstruct is None)

  def step(x_t: jax.Array, t: jax.Array) -> tuple[jax.Array, None]:
    share, at = None, (params, x_t, jnp.full((size,), t), each)
    if variance == LEARNED:
      assert model.apply_learned is not None  # `check` has seen to it.
      prediction, share = model.apply_learned(*at)
    else:
      prediction = model.apply(*at)
    fresh = normal_each(jax.vmap(lambda key: jax.random.fold_in(key, t))(step_keys), x_t.shape[1:])
    schedule = model.schedule
    if correct is not None:
      prediction = schedules.predict_x0(schedule, x_t, prediction, t)
      if options.clip_sample:
        prediction = jnp.clip(prediction, -1.0, 1.0)
      prediction, schedule = correct(prediction), schedule._replace(prediction_type="sample")
    given = (schedule, prediction, x_t, t, t - 1, fresh)
    return samplers.ddpm_step(*given, options=options, share=share), None

  x0, _ = jax.lax.scan(step, x_t, jnp.arange(timestep - 1, -1, -1))
  return model.decode(params, x0)
