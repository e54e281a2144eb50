"""FSMG: the max step against a surrogate that was fine-tuned on the clean pictures once.

Anti-DreamBooth (Le et al. 2023, arXiv:2303.15433), fully-trained surrogate model guidance.
Published on [-1, 1]: radius 0.05, steps 0.005, which are 6.4 and 0.64 of 255 levels, 100 steps; the
surrogate is trained 1000 steps with AdamW at 5e-7 (5e-6 is the program's default), U-Net and text
encoder. See `surrogates` for what differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.protections import surrogates
from udp_jax.protections.base import Info, PGDState, Protection
from udp_jax.protections.maxmin import run_if
from udp_jax.randomness import stream
from udp_jax.training import Batch, TrainState


class FSMGState(NamedTuple):
  """The perturbations, the surrogate, its losses in the last round that trained, class pictures."""

  inner: PGDState
  surrogate: TrainState
  train_loss: jax.Array
  round: jax.Array
  class_images: jax.Array | None

  @property
  def delta(self) -> jax.Array:
    """(num_batches, B, H, W, C)."""
    return self.inner.delta


def fsmg(
  model: DiffusionModel,
  *,
  radius: float,
  step_size: float,
  train_steps: int = 1000,
  warmup_rounds: int = 1,
  perturb_steps: int = 1,
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
  """Fine-tunes a surrogate in the first rounds, and attacks it, held still, in those after.

  `Info.train_loss` of a later round is that of the last one that trained.

  Args:
    model: the attacked model; `init` and `update` need its trained parameters.
    radius: L-inf budget on the [0, 1] scale (published: 6.4 / 255).
    step_size: on the [0, 1] scale (published: 0.64 / 255, 100 steps).
    train_steps: of the surrogate in each of the first rounds.
    warmup_rounds: how many rounds train, and perturb nothing; `num_rounds` has to be larger.
      Published: 1000 steps in all. Several rounds can be interrupted where one cannot.
    perturb_steps: of every picture in each later round.
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
  if warmup_rounds < 1:
    raise ConfigError("fsmg: without a warm-up round the surrogate is the model itself: use advdm")
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

  def init(key: jax.Array, data: Batch, params: Params) -> FSMGState:
    trained = surrogate.init(stream(key, "surrogate"), params)
    deltas = perturb.init(stream(key, "start"), data, params)
    class_images = surrogate.class_images(key, data, params)
    losses, at_start = jnp.zeros((train_steps,)), jnp.zeros((), jnp.int32)
    return FSMGState(deltas, trained, losses, at_start, class_images)

  def update(key: jax.Array, state: FSMGState, data: Batch, params: Params, phase=None):
    del phase  # A round does one thing or the other.
    warm = state.round >= warmup_rounds

    def fine_tuned(carry):
      key_train = stream(key, "train")
      return surrogate.steps(key_train, carry[0], data, None, params, state.class_images)

    trained, train_loss = run_if(~warm, fine_tuned, (state.surrogate, state.train_loss))
    target = surrogates.attacked(surrogate, trained.params, params)

    def perturbed(carry):
      deltas, info = perturb.update(stream(key, "perturb"), carry[0], data, target)
      return deltas, info.loss

    deltas, loss = run_if(warm, perturbed, (state.inner, jnp.full(data.ids.shape, jnp.nan)))
    done = FSMGState(deltas, trained, train_loss, state.round + 1, state.class_images)
    return done, Info(loss, train_loss)

  return Protection(init, update, needs_params=True, perturb_steps=perturb_steps)
