"""Fine-tunes all weights of a text-to-image model's U-Net on pictures and their captions."""

from __future__ import annotations

from typing import Annotated

from udp_jax.models import trainable
from udp_jax.models.base import DiffusionModel
from udp_jax.models.sampling import Sampling
from udp_jax.threats.base import Threat
from udp_jax.threats.finetuning import SAMPLING, Training, fine_tune


def full(
  model: DiffusionModel,
  *,
  train_steps: int,
  train_text_encoder: bool = False,
  training: Training = Training(learning_rate=1e-5),
  sampling: Annotated[Sampling, SAMPLING] = Sampling(),
) -> Threat:
  """Full fine-tuning of the U-Net, and optionally the text encoder (diffusers' text_to_image).

  A pixel model is trained as a whole.

  Args:
    model: the model that is fine-tuned.
    train_steps: total number of optimiser steps.
    train_text_encoder: whether to train the text encoder too.
    training: learning rate, warm-up, decays, clipping, averaging and flips.
    sampling: how the fine-tuned model is sampled from.

  Raises:
    ConfigError: the decay or sampler is unknown, or the schedule does not allow the step count.

  >>> from udp_jax.models import toy
  >>> short = Sampling(sample_steps=10)
  >>> threat = full(toy.on_pixels(), train_steps=20, sampling=short)
  >>> threat.train_steps, threat.needs_params, threat.prior_weight
  (20, True, 0.0)
  """
  theta = trainable.denoiser()
  if train_text_encoder:
    theta = trainable.joined(theta, trainable.part("text_encoder"))
  return fine_tune(
    model,
    theta,
    train_steps=train_steps,
    training=training,
    sampling=sampling,
    trains_text=train_text_encoder,
  )
