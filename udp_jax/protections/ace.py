"""ACE: pulls what the U-Net predicts to one target, the same for all pictures and timesteps.

"Targeted attack improves protection against unauthorized diffusion customization", after
aspl_lora_m.py of caradryanl/ACE (also the default of Mist version 2). With z_t the noised
latents of x + delta and z_T the latents of a target picture,

  minimise E_{t, noise} mean (noise_pred(z_t, t) - z_T)^2

against a surrogate that is fine-tuned on the protected pictures after each group of steps.
Published on [-1, 1]: radius 8/255, steps 0.005, which are 4 and 0.64 of 255 levels; 5 rounds of 50
perturb steps, then 5 steps of a LoRA of rank 4, Stable Diffusion 1.5, target data/NIPS.png.

Differences: the target is our own pattern (`target` accepts a picture file). Timesteps are uniform
in [600, 1000), as in their plain path; their path for little memory takes [0, 1000). The target's
latents are the posterior's mean and are not noised, as in the equation; the file at commit 147ad2b
noises them to t - 1. It also has an option for steps of structural similarity beforehand, which is
left out. The LoRA's learning rate is that of Mist version 2, 1e-4; theirs was not at hand.
Pictures of a batch share the surrogate's steps, see `surrogates`.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from udp_jax.errors import ConfigError
from udp_jax.models.base import Cond, DiffusionModel, Params
from udp_jax.models.sampling import Sampling
from udp_jax.objectives import latent
from udp_jax.objectives.base import Objective
from udp_jax.ops import schedules, timesteps
from udp_jax.ops.keys import normal_each, split_each
from udp_jax.protections import constraints, surrogates, targets
from udp_jax.protections.adaptive import adapted
from udp_jax.protections.aspl import alternating
from udp_jax.protections.base import (
  Protection,
  Rounds,
  divisible,
  over_batches,
  pgd,
  sign_descent,
)
from udp_jax.protections.options import Adaptive, Game, Prior, Spectrum, Surrogate

GAME = Game(train_steps=5, perturb_steps=50, learning_rate=1e-4)


def ace(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  target: str = "pattern",
  latent_weight: float = 0.0,
  earliest: float = 0.6,
  game: Annotated[Game, surrogates.GAME] = GAME,
  surrogate: Annotated[Surrogate, surrogates.SURROGATE] = Surrogate(),
  prior: Prior = Prior(),
  sampling: Annotated[Sampling, surrogates.SAMPLING] = Sampling(),
  adaptive: Adaptive = Adaptive(),
  spectrum: Spectrum = Spectrum(),
) -> Protection:
  """Each round perturbs towards the target, then trains the surrogate on protected pictures.

  Args:
    model: a latent model; `init` and `update` need its trained parameters.
    radius: L-inf budget on the [0, 1] scale (published: 4 / 255).
    step_size: length of a sign step on the [0, 1] scale (published: 0.64 / 255, 5 rounds of 50).
    target: one of `targets.PATTERNS`, "zero", or the path of a picture (published).
    latent_weight: weight of the mean squared distance of the latents themselves to the target's;
      100 is ACE+ (`ace_plus`).
    earliest: first timestep that is drawn, as a share of the schedule in [0, 1); published: 0.6,
      and 0 in the path for little memory.
    game: steps in a round, the start of delta, and the surrogate's AdamW.
    surrogate: the part of the model that is trained; published: "lora".
    prior: the class that the surrogate must not forget.
    sampling: how the model draws the class pictures.
    adaptive: transforms, draws and consistency of the perturb steps.
    spectrum: the band of frequencies of delta; a sign step moves it by `step_size` in the mean.

  Raises:
    ConfigError: the model works on pixels, or an option cannot be used.
    MissingDataError, BadDataError: the target's file is missing or damaged.

  >>> from udp_jax.models import toy
  >>> method = ace(toy.on_latents(), radius=4 / 255, step_size=0.64 / 255)
  >>> method.trains, method.perturb_steps
  (5, 50)
  """
  latent.require_latent(model, "ace")
  surrogates.check("ace", game, surrogate, sampling)
  if not 0.0 <= earliest < 1.0:
    raise ConfigError(f"ace: earliest is {earliest}; it is a share of the schedule in [0, 1)")
  length = model.schedule.num_steps
  drawn = np.arange(length) >= round(earliest * length)
  picture = targets.picture(target, model.image_shape)
  unified = unified_target(model, drawn / drawn.sum(), picture, latent_weight)
  inner = pgd(
    adapted(model, unified, adaptive),
    constraints.linf(radius, start=game.start, spectrum=spectrum),
    sign_descent(step_size),
  )
  perturb = over_batches(inner, num_steps=game.perturb_steps, hold=model.hold)
  preserved = surrogates.preserved(model, prior, sampling)

  def made(rounds: Rounds) -> Protection:
    training = dataclasses.replace(game, train_steps=rounds.train_steps)
    learner = surrogates.fine_tuned(model, training, surrogate, preserved)
    return alternating(learner, perturb, ahead=False)

  return divisible(made, Rounds(game.train_steps, game.perturb_steps))


def unified_target(
  model: DiffusionModel, probs: ArrayLike, target: np.ndarray | None, latent_weight: float = 0.0
) -> Objective:
  """Mean (noise_pred - z_T)^2 + latent_weight * mean (z - z_T)^2 with z_T the target's latents.

  Args:
    model: a latent model; predictions of other kinds are converted to noise.
    probs: distribution over timesteps, (T,).
    target: one picture (H, W, 3) in [0, 1] for all, or None for latents of zero.
    latent_weight: weight of the latents' own distance; both terms share one draw of z.

  Returns:
    An objective; aux holds `timesteps` (B,).

  >>> from udp_jax.models import toy
  >>> model, keys = toy.on_latents(), jax.random.split(jax.random.key(0), 2)
  >>> objective = unified_target(model, timesteps.uniform(50), None, 100.0)
  >>> objective(model.init(keys[0]), jnp.full((2, 8, 8, 3), 0.5), None, keys)[0].shape
  (2,)
  """
  probs = jnp.asarray(probs, jnp.float32)

  def objective(params: Params, images: jax.Array, cond: Cond, keys: jax.Array):
    # The same draws as in `objectives.denoising.denoising`.
    key_t, key_noise, key_encode, _ = split_each(keys, 4)
    x0 = model.encode(params, images, key_encode)
    at = jax.vmap(lambda key: timesteps.sample(key, probs))(key_t)
    noise = normal_each(key_noise, x0.shape[1:])
    x_t = schedules.add_noise(model.schedule, x0, noise, at)
    prediction = model.apply(params, x_t, at, cond)
    noise_pred = schedules.predict_noise(model.schedule, x_t, prediction, at)
    aim = jnp.zeros((1, *x0.shape[1:]))
    if target is not None:
      aim = model.encode(params, jnp.asarray(target, images.dtype)[None], None)
    axes = tuple(range(1, x0.ndim))
    losses = jnp.mean(jnp.square(noise_pred - aim), axis=axes)
    if latent_weight:
      losses = losses + latent_weight * jnp.mean(jnp.square(x0 - aim), axis=axes)
    return losses, {"timesteps": at}

  return objective
