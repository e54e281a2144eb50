"""ASPL: surrogate and perturbation in turn, with a look at what clean training would do.

Anti-DreamBooth (Le et al. 2023, arXiv:2303.15433), alternating surrogate and perturbation learning.
A round: a copy of the surrogate trains on the clean pictures, delta climbs the copy's denoising
loss, the copy is thrown away, the surrogate trains on the protected pictures. Published on [-1, 1]:
radius 0.05, steps 0.005, which are 6.4 and 0.64 of 255 levels; 50 rounds of 3 train and 6 perturb
steps; AdamW at 5e-7 (the program's default is 5e-6), made afresh for each training, U-Net and text
encoder. See `surrogates` for what differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from udp_jax.models.base import DiffusionModel, Params
from udp_jax.protections import surrogates
from udp_jax.protections.base import Info, PGDState, Protection
from udp_jax.randomness import stream
from udp_jax.training import Batch, TrainState


class ASPLState(NamedTuple):
  """The perturbations, the surrogate between two trainings, and pictures of the class."""

  inner: PGDState
  surrogate: TrainState
  round: jax.Array
  class_images: jax.Array | None

  @property
  def delta(self) -> jax.Array:
    """(num_batches, B, H, W, C)."""
    return self.inner.delta


def aspl(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  train_steps: int = 3,
  perturb_steps: int = 6,
  start: str = "zero",
  learning_rate: float = 5e-7,
  weight_decay: float = 1e-2,
  clip_norm: float = 1.0,
  trains: str = "denoiser",
  rank: int = 4,
  prior_weight: float = 0.0,
  class_ids: Sequence[int] | None = None,
  num_class_images: int = 200,
  sample_steps: int = 50,
  guidance_scale: float = 7.5,
  uncond_ids: Sequence[int] | None = None,
  transforms: str = "",
  consistency_weight: float = 0.0,
) -> Protection:
  """Rounds of: copy and train on clean, perturb, train on protected.

  `Info.train_loss` is that of the surrogate, not of its copies.

  Args:
    model: the attacked model; `init` and `update` need its trained parameters.
    radius: L-inf budget on the [0, 1] scale (published: 6.4 / 255).
    step_size: on the [0, 1] scale (published: 0.64 / 255, 50 rounds of 6).
    train_steps: of the copy on clean pictures, and again of the surrogate on protected ones, in
      each round.
    perturb_steps: of every picture in each round.
    start: of delta: "zero", "uniform" or "sign".
    learning_rate: of the surrogate's AdamW.
    weight_decay: of the surrogate's AdamW.
    clip_norm: global norm at which the surrogate's gradient is clipped.
    trains: see `surrogates.fine_tuned`; published: "denoiser_and_text".
    rank: see `surrogates.fine_tuned`.
    prior_weight: of class pictures in the surrogate's training; 0 trains without (published: 1).
    class_ids: (L,) token ids of the class's prompt; a config says `class_prompt` ("a photo of a
      person").
    num_class_images: that the model makes before it is trained (published: 200).
    sample_steps: of DDIM, for each of them.
    guidance_scale: of their sampling; other than 1 it needs `uncond_ids`.
    uncond_ids: (L,) token ids of the empty prompt.
    transforms: see `adaptive`.
    consistency_weight: see `adaptive`.

  Raises:
    ConfigError: an option that cannot be used.
  """
  surrogate = surrogates.fine_tuned(
    model,
    train_steps=train_steps,
    learning_rate=learning_rate,
    weight_decay=weight_decay,
    clip_norm=clip_norm,
    trains=trains,
    rank=rank,
    prior=surrogates.preserved(
      model,
      prior_weight=prior_weight,
      class_ids=class_ids,
      num_class_images=num_class_images,
      sample_steps=sample_steps,
      guidance_scale=guidance_scale,
      uncond_ids=uncond_ids,
    ),
  )
  perturb = surrogates.climbing(
    model,
    radius=radius,
    step_size=step_size,
    perturb_steps=perturb_steps,
    start=start,
    transforms=transforms,
    consistency_weight=consistency_weight,
  )

  def init(key: jax.Array, data: Batch, params: Params) -> ASPLState:
    # Optimisers live for one training: between rounds there is nothing of them to keep.
    fresh = surrogate.init(stream(key, "surrogate"), params)._replace(opt_state=())
    deltas = perturb.init(stream(key, "start"), data, params)
    class_images = surrogate.class_images(key, data, params)
    return ASPLState(deltas, fresh, jnp.zeros((), jnp.int32), class_images)

  def update(key: jax.Array, state: ASPLState, data: Batch, params: Params, phase=None):
    del phase  # The copy would have to be kept between parts.
    kept = state.surrogate._replace(opt_state=surrogate.tx.init(state.surrogate.params))
    of_class = state.class_images
    copy, _ = surrogate.steps(stream(key, "copy"), kept, data, None, params, of_class)
    target = surrogates.attacked(surrogate, copy.params, params)
    deltas, info = perturb.update(stream(key, "perturb"), state.inner, data, target)
    trained, train_loss = surrogate.steps(
      stream(key, "train"), kept, data, deltas.delta, params, of_class
    )
    trained = trained._replace(opt_state=())
    done = ASPLState(deltas, trained, state.round + 1, of_class)
    return done, Info(info.loss, train_loss)

  return Protection(init, update, needs_params=True, perturb_steps=perturb_steps)
