"""DreamBooth (Ruiz et al., arXiv:2208.12242): learns a subject, preserves its class."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from udp_jax import published
from udp_jax.errors import ConfigError
from udp_jax.models import lora as low_rank
from udp_jax.models import lora_files, trainable
from udp_jax.models.base import DiffusionModel
from udp_jax.models.sampling import Sampling
from udp_jax.threats.base import Threat
from udp_jax.threats.finetuning import SAMPLING, Training, fine_tune


def dreambooth(
  model: DiffusionModel,
  *,
  train_steps: int,
  prior_weight: float = 1.0,
  rank: int = 0,
  scale: float = 1.0,
  targets: Sequence[str] = low_rank.UNET_TARGETS,
  train_text_encoder: bool = False,
  training: Training = Training(learning_rate=0.0),
  sampling: Annotated[Sampling, SAMPLING] = Sampling(),
) -> Threat:
  """Fine-tunes on "a photo of sks CLASS" with the prior-preservation loss (equation 2).

  Half of every step's batch are class pictures, which the model made before it was trained; such
  data come from `batches_with_prior`.

  Args:
    model: the model that is fine-tuned.
    train_steps: total number of optimiser steps.
    prior_weight: weight of the class pictures' loss, lambda in the paper; 0 trains without them.
    rank: rank of low-rank updates; 0 trains all weights.
    scale: factor of low-rank updates; PEFT's lora_alpha / rank.
    targets: names of the U-Net's modules that get a low-rank update.
    train_text_encoder: whether to train the text encoder too (or its low-rank updates).
    training: learning rate, warm-up, decays, clipping, averaging and flips. A learning rate of 0 is
      the published one for what is trained: 5e-6 for the U-Net, 2e-6 with the text encoder, 1e-4
      for low-rank updates (`udp_jax.published`).
    sampling: how the fine-tuned model is sampled from.

  Raises:
    ConfigError: prior_weight, rank, targets, decay, sampler or step count cannot be used.

  >>> from udp_jax.models import toy
  >>> short = Sampling(sample_steps=10)
  >>> threat = dreambooth(toy.on_pixels(), train_steps=20, prior_weight=0.5, sampling=short)
  >>> threat.train_steps, threat.needs_params, threat.prior_weight
  (20, True, 0.5)
  """
  if prior_weight < 0:
    raise ConfigError(f"prior_weight is {prior_weight}; it must be at least 0")
  if not training.learning_rate:
    rate = published.dreambooth_rate(rank, train_text_encoder)
    training = dataclasses.replace(training, learning_rate=rate)
  if rank:
    text_targets = low_rank.TEXT_ENCODER_TARGETS if train_text_encoder else ()
    theta = trainable.lora(rank, scale, targets, text_encoder_targets=text_targets)
  else:
    theta = trainable.denoiser()
    if train_text_encoder:
      theta = trainable.joined(theta, trainable.part("text_encoder"))
  return fine_tune(
    model,
    theta,
    train_steps=train_steps,
    training=training,
    sampling=sampling,
    prior_weight=prior_weight,
    trains_text=train_text_encoder,
    save=(lambda folder, t: lora_files.save_lora(folder, t, scale=scale)) if rank else None,
  )
