"""The second stage of latent diffusion: U-Net and text encoder on the latents of a fixed VAE.

Latents are stored as the moments of the VAE's posterior, for each picture and its mirror image, so
that a training step samples the posterior without running the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from udp_jax.data.batches import Batch
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.models.tokenizer import Tokenizer
from udp_jax.objectives import training
from udp_jax.objectives.base import Objective
from udp_jax.objectives.training import TrainState
from udp_jax.ops import samplers
from udp_jax.ops.keys import example_keys, normal_each, split_each


def on_moments(model: DiffusionModel, scaling_factor: float) -> DiffusionModel:
  """Returns `model` with an `encode` that takes moments (B, h, w, 2 * C), mean before logvar."""

  def encode(params: Params, moments: jax.Array, keys: jax.Array) -> jax.Array:
    del params
    mean, logvar = jnp.split(moments, 2, axis=-1)
    return scaling_factor * (mean + jnp.exp(0.5 * logvar) * normal_each(keys, mean.shape[1:]))

  return model._replace(encode=encode)


def caption_table(tokenizer: Tokenizer, captions: Sequence[Sequence[str]]) -> np.ndarray:
  """Token ids of concepts' captions, (concepts + 1, alternatives, L); the last row encodes ""."""
  rows = [tokenizer(list(alternatives)) for alternatives in captions]
  return np.stack([*rows, tokenizer([""] * len(rows[0]))])


def captioned(objective: Objective, table: np.ndarray, drop: float) -> Objective:
  """Lets `objective` take concepts: draws one of their captions, or the empty one, as token ids.

  Args:
    objective: takes token ids (B, L).
    table: (concepts + 1, alternatives, L) token ids, from `caption_table`.
    drop: probability of the empty caption, for classifier-free guidance.

  Returns:
    An objective whose `cond` is (B,), rows of the table.
  """
  token_ids = jnp.asarray(table)

  def with_ids(params: Params, images: jax.Array, cond: jax.Array, keys: jax.Array):
    key_drop, key_choice, keys = split_each(keys, 3)
    dropped = jax.vmap(lambda key: jax.random.bernoulli(key, drop))(key_drop)
    choice = jax.vmap(lambda key: jax.random.randint(key, (), 0, token_ids.shape[1]))(key_choice)
    concept = jnp.where(dropped, len(token_ids) - 1, cond)
    return objective(params, images, token_ids[concept, choice], keys)

  return with_ids


def make_update(objective: Objective, tx: optax.GradientTransformation, *, ema_decay: float):
  """Like `training.make_update`, but `images` of a batch are moments, not 8-bit pictures."""

  def update(key: jax.Array, state: TrainState, batch: Batch, delta: None):
    del delta
    keys = example_keys(key, state.step, batch.ids)

    def total(params: Params) -> jax.Array:
      losses, _ = objective(params, jnp.asarray(batch.images), batch.cond, keys)
      return jnp.sum(losses * batch.weight)

    loss, gradients = jax.value_and_grad(total)(state.params)
    return training.apply_gradients(tx, state, gradients, loss, batch.weight, ema_decay=ema_decay)

  return update


def sample(
  model: DiffusionModel,
  params: Params,
  key: jax.Array,
  token_ids: np.ndarray,
  empty_ids: np.ndarray,
  *,
  num_steps: int,
  guidance_scale: float,
  sampler_options: dict[str, Any],
) -> np.ndarray:
  """Samples pictures (N, H, W, 3) in [0, 1] for prompts (N, L), by guided DDIM."""

  @jax.jit
  def draw(params: Params, key: jax.Array, ids: jax.Array, empty: jax.Array) -> jax.Array:
    assert model.embed is not None
    cond, uncond = model.embed(params, ids), model.embed(params, empty)
    denoise = partial(model.apply, model.hold(params))
    predict = samplers.guided(denoise, cond, uncond, scale=guidance_scale)
    shape = (len(ids), *model.shape)
    options = samplers.arguments("ddim", {"num_steps": num_steps, **sampler_options})
    x0 = samplers.ddim(key, predict, model.schedule, shape, **options)
    return model.decode(params, x0)

  empty = np.broadcast_to(empty_ids, token_ids.shape)
  return np.asarray(draw(params, key, token_ids, empty))
