"""SDS on latents: score distillation moves a picture's latents in a box, then they are decoded.

The mode `sds_z` of xavihart/Diff-Protect (Xue et al. 2023, arXiv:2311.12832): sign steps of
noise_pred - noise on the latents themselves, clipped to the first latents +-eps; only the U-Net's
forward pass is needed. Published, in scaled latents: box 2 * 16/255, steps 2 * 1/255, 100 of them.

Difference: there the decoded picture is the result, with no limit on the pixels, so that it also
has the autoencoder's own errors. Here the decoded picture is projected into the budget around the
clean one, which every saved file keeps. Where the autoencoder loses more than the budget, little of
the change is left; `keep_lost` then adds only the change that the moved latents decode to.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from udp_jax import registry
from udp_jax.data.batches import Batch
from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.objectives import latent
from udp_jax.objectives.base import averaged
from udp_jax.ops import timesteps
from udp_jax.ops.image import to_float
from udp_jax.ops.keys import example_keys, stream
from udp_jax.protections import constraints
from udp_jax.protections.base import Info, Protection, allowed, over_batches
from udp_jax.protections.options import Adaptive
from udp_jax.protections.sds import DIRECTIONS

# Fields of `Adaptive` that this method uses.
ADAPTIVE = ("num_draws",)


class SDSZState(NamedTuple):
  """Perturbations, latents, the latents that they started from, and a step count."""

  delta: jax.Array
  latents: jax.Array
  first: jax.Array
  step: jax.Array


def sds_z(
  model: DiffusionModel,
  *,
  radius: float,
  latent_radius: float = 2 * 16 / 255,
  latent_step: float = 2 / 255,
  direction: str = "minus",
  keep_lost: bool = False,
  adaptive: Annotated[Adaptive, ADAPTIVE] = Adaptive(),
) -> Protection:
  """Sign steps on latents along the score distillation gradient.

  Args:
    model: a latent model.
    radius: L-inf budget of the pixels on the [0, 1] scale; published: none.
    latent_radius: half the side of the box around the first latents, which are scaled to a
      variance of about 1; published: 32 / 255.
    latent_step: length of a sign step there; published: 2 / 255, 100 steps.
    direction: "minus" (latents that are easy to denoise) or "plus".
    keep_lost: whether pictures keep what the autoencoder loses: clean + decode(latents) -
      decode(first latents). False is decode(latents), as published. Both are projected.
    adaptive: the number of (timestep, noise) draws that a step averages.

  Raises:
    ConfigError: the model works on pixels, or the direction is unknown.

  >>> from udp_jax.models import toy
  >>> sds_z(toy.on_latents(), radius=8 / 255).needs_params
  True
  """
  registry.only("sds_z", adaptive, ADAPTIVE)
  latent.require_latent(model, "sds_z")
  if direction not in DIRECTIONS:
    raise ConfigError(f"sds_z: unknown direction {direction!r}; known: {', '.join(DIRECTIONS)}")
  # Latents take the place of pictures, so that the objective's gradient is noise_pred - noise.
  on_latents = model._replace(encode=lambda params, latents, keys: latents)
  uniform = timesteps.uniform(model.schedule.num_steps)
  distilled = averaged(latent.sds(on_latents, uniform), adaptive.num_draws)
  budget = constraints.linf(radius)

  def decoded(latents: jax.Array, first: jax.Array, batch: Batch, params: Params) -> jax.Array:
    images = to_float(batch.images)
    if keep_lost:
      made = model.decode(params, latents, False) - model.decode(params, first, False)
    else:
      made = model.decode(params, latents) - images
    return allowed(budget.project(made, images), batch)

  def init(key: jax.Array, batch: Batch, params: Params) -> SDSZState:
    keys = example_keys(stream(key, "encode"), 0, batch.ids)
    first = model.encode(params, to_float(batch.images), keys)
    return SDSZState(jnp.zeros(batch.images.shape), first, first, jnp.zeros((), jnp.int32))

  def update(key: jax.Array, state: SDSZState, batch: Batch, params: Params, phase=None):
    del phase  # One step has no parts.
    keys = example_keys(key, state.step, batch.ids)

    def total(latents: jax.Array) -> tuple[jax.Array, jax.Array]:
      losses, _ = distilled(params, latents, batch.cond, keys)
      return losses.sum(), losses

    gradients, losses = jax.grad(total, has_aux=True)(state.latents)
    moved = state.latents - DIRECTIONS[direction] * latent_step * jnp.sign(gradients)
    latents = jnp.clip(moved, state.first - latent_radius, state.first + latent_radius)
    done = SDSZState(
      decoded(latents, state.first, batch, params), latents, state.first, state.step + 1
    )
    return done, Info(losses, jnp.zeros((0,)))

  return over_batches(Protection(init, update, needs_params=True), hold=model.hold)
