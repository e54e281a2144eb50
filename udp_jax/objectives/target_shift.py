"""Anti-DreamBooth's target shift: a denoising step that is moved towards another picture.

Le et al. 2023 (arXiv:2303.15433), after FSMG and ASPL of VinAIResearch/Anti-DreamBooth.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from udp_jax.models.base import Cond, DiffusionModel, Params
from udp_jax.objectives.base import Objective
from udp_jax.ops import samplers, schedules
from udp_jax.ops import timesteps as timesteps_lib
from udp_jax.ops.keys import normal_each, split_each


def shifted(
  model: DiffusionModel, probs: ArrayLike, target: np.ndarray | None, weight: float = 1.0
) -> Objective:
  """Denoising loss - weight * mean (x_{t-1} - target_{t-1})^2; a perturbation maximises it.

  x_{t-1} is DDPM's step from x_t with the model's prediction; target_{t-1} is the target's x0,
  noised to t - 1 by the noise of x_t. Both terms share one call of the network. Differences from
  the published code: the target's latents are the posterior's mean (theirs: one draw), and at the
  first timestep they stay without noise (theirs wraps around to the last one, pure noise).

  Args:
    model: the diffusion model.
    probs: distribution over timesteps, (T,).
    target: the picture (H, W, 3) in [0, 1], or None for an x0 of zero.
    weight: weight of the shift; 0 is `objectives.denoising`, with the same draws.

  Returns:
    An objective; aux holds `timesteps` and `shift`, the mean squared distances, both (B,).

  >>> from udp_jax.models import toy
  >>> model, keys = toy.on_pixels(), jax.random.split(jax.random.key(0), 2)
  >>> objective = shifted(model, timesteps_lib.uniform(50), np.zeros((8, 8, 3)))
  >>> params = model.init(jax.random.key(1))
  >>> losses, aux = objective(params, jnp.full((2, 8, 8, 3), 0.5), None, keys)
  >>> losses.shape, aux["shift"].shape
  ((2,), (2,))
  """
  probs = jnp.asarray(probs)

  def objective(params: Params, images: jax.Array, cond: Cond, keys: jax.Array):
    # The same draws as in `objectives.denoising.denoising`.
    key_t, key_noise, key_encode, key_step = split_each(keys, 4)
    x0 = model.encode(params, images, key_encode)
    axes = tuple(range(1, x0.ndim))
    timesteps = jax.vmap(lambda key: timesteps_lib.sample(key, probs))(key_t)
    noise = normal_each(key_noise, x0.shape[1:])
    x_t = schedules.add_noise(model.schedule, x0, noise, timesteps)
    prediction = model.apply(params, x_t, timesteps, cond)
    wanted = schedules.training_target(model.schedule, x0, noise, timesteps)
    losses = jnp.mean(jnp.square(prediction - wanted), axis=axes)
    previous = samplers.ddpm_step(
      model.schedule,
      prediction,
      x_t,
      timesteps,
      timesteps - 1,
      normal_each(key_step, x0.shape[1:]),
      options=samplers.DDPM(clip_sample=False),
    )
    aim = jnp.zeros((1, *x0.shape[1:]))
    if target is not None:
      aim = model.encode(params, jnp.asarray(target, images.dtype)[None], None)
    aim = jnp.broadcast_to(aim, x0.shape)
    noised = schedules.add_noise(model.schedule, aim, noise, jnp.maximum(timesteps - 1, 0))
    first = (timesteps == 0).reshape(-1, *([1] * len(axes)))
    shift = jnp.mean(jnp.square(previous - jnp.where(first, aim, noised)), axis=axes)
    return losses - weight * shift, {"timesteps": timesteps, "shift": shift}

  return objective
