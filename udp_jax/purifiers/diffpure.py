"""DiffPure (Nie et al., ICML 2022, arXiv:2205.07460): adds noise part of the way, then denoises.

Differences: the reverse process is DDPM's ancestral chain over every timestep, where the paper
solves the equivalent stochastic differential equation; and the variance is fixed, since our models
learn none. On latent models the method works on the latents, as in other publications.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from udp_jax.errors import ConfigError
from udp_jax.models.base import Cond, DiffusionModel, Params
from udp_jax.ops import chain, samplers, schedules
from udp_jax.ops.keys import normal_each, split_each
from udp_jax.purifiers import base
from udp_jax.purifiers.base import Purifier


def diffpure(
  model: DiffusionModel | None,
  *,
  timestep: int = 100,
  variance: str = "fixed_small",
  cond: Cond = None,
) -> Purifier:
  """Diffuses every picture to `timestep` and runs the reverse chain from there.

  Pictures must have the model's size; `gridpure` takes other sizes.

  Args:
    model: a diffusion model for pictures of this size.
    timestep: number of steps of noise, and of denoising. The paper's 0.1 of the schedule (CIFAR-10)
      is 100 of 1000, its 0.15 (ImageNet at 256x256) is 150; others use 300 on latents.
    variance: variance of the reverse steps, "fixed_small" or "fixed_large".
    cond: conditioning of the model for all pictures, (1, ...); None if the model takes none.

  Raises:
    ConfigError: the timestep is outside the schedule, or the variance is unknown. `apply` raises
      it for pictures of another size.

  >>> from udp_jax.models import toy
  >>> model, keys = toy.on_pixels(), jax.random.split(jax.random.key(0), 1)
  >>> params = model.init(jax.random.key(1))
  >>> method = diffpure(model, timestep=3)
  >>> method.apply(params, keys, jnp.full((1, 8, 8, 3), 0.5)).shape
  (1, 8, 8, 3)
  """
  model = base.need_model(model, "diffpure")
  check(model, "diffpure", timestep, variance)

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


def check(model: DiffusionModel, name: str, timestep: int, variance: str) -> None:
  """Raises ConfigError for a timestep outside the model's schedule, or an unknown variance.

  >>> from udp_jax.models import toy
  >>> check(toy.on_pixels(), "diffpure", 100, "fixed_small")
  Traceback (most recent call last):
  udp_jax.errors.ConfigError: purifier diffpure: timestep must be 1 to 50, got 100
  """
  if not 1 <= timestep <= model.schedule.num_steps:
    raise ConfigError(
      f"purifier {name}: timestep must be 1 to {model.schedule.num_steps}, got {timestep}"
    )
  if variance not in chain.VARIANCES:
    known = ", ".join(chain.VARIANCES)
    raise ConfigError(f"purifier {name}: variance {variance!r} is not one of {known}")


def noise_and_denoise(
  model: DiffusionModel,
  params: Params,
  keys: jax.Array,
  images: jax.Array,
  *,
  timestep: int,
  variance: str,
  cond: Cond,
) -> jax.Array:
  """Adds `timestep` steps of noise at once, then runs as many reverse steps.

  Args:
    model: a diffusion model for pictures of this size.
    params: the model's parameters, or the result of `hold` on them.
    keys: (B,), one per picture.
    images: (B, H, W, 3) in [0, 1].
    timestep: number of steps of noise, and of denoising.
    variance: variance of the reverse steps, "fixed_small" or "fixed_large".
    cond: conditioning of the model for all pictures, (1, ...); None if the model takes none.

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
  options = samplers.DDPM(variance, clip_sample=model.reconstruct is None)

  def step(x_t: jax.Array, t: jax.Array) -> tuple[jax.Array, None]:
    prediction = model.apply(params, x_t, jnp.full((size,), t), each)
    fresh = normal_each(jax.vmap(lambda key: jax.random.fold_in(key, t))(step_keys), x_t.shape[1:])
    x_t = samplers.ddpm_step(model.schedule, prediction, x_t, t, t - 1, fresh, options=options)
    return x_t, None

  x0, _ = jax.lax.scan(step, x_t, jnp.arange(timestep - 1, -1, -1))
  return model.decode(params, x0)
