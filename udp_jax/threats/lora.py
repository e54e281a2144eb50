"""Fine-tunes low-rank updates of a text-to-image model (Hu et al., arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from udp_jax.models import lora as low_rank
from udp_jax.models import lora_files, trainable
from udp_jax.models.base import DiffusionModel
from udp_jax.models.sampling import Sampling
from udp_jax.threats.base import Threat
from udp_jax.threats.finetuning import SAMPLING, Training, fine_tune


def lora(
  model: DiffusionModel,
  *,
  train_steps: int,
  rank: int = 4,
  scale: float = 1.0,
  targets: Sequence[str] = low_rank.UNET_TARGETS,
  train_text_encoder: bool = False,
  training: Training = Training(learning_rate=1e-4),
  sampling: Annotated[Sampling, SAMPLING] = Sampling(),
) -> Threat:
  """LoRA of the attention projections, like diffusers' train_text_to_image_lora.

  `Threat.save` writes the file that PyTorch diffusers' `load_lora_weights` opens.

  Args:
    model: the model that is fine-tuned; its own parameters do not change.
    train_steps: total number of optimiser steps.
    rank: rank of the updates.
    scale: factor of the updates; PEFT's lora_alpha / rank.
    targets: names of the U-Net's modules that get an update.
    train_text_encoder: whether to update the text encoder's attention projections too.
    training: learning rate, warm-up, decays, clipping, averaging and flips.
    sampling: how the fine-tuned model is sampled from.

  Raises:
    ConfigError: rank, targets, decay, sampler or step count cannot be used.

  >>> from udp_jax.models import toy
  >>> short = Sampling(sample_steps=10)
  >>> threat = lora(toy.on_pixels(), train_steps=20, rank=8, sampling=short)
  >>> threat.train_steps, threat.needs_params, threat.prior_weight
  (20, True, 0.0)
  """
  text_targets = low_rank.TEXT_ENCODER_TARGETS if train_text_encoder else ()
  return fine_tune(
    model,
    trainable.lora(rank, scale, targets, text_encoder_targets=text_targets),
    train_steps=train_steps,
    training=training,
    sampling=sampling,
    trains_text=train_text_encoder,
    save=lambda folder, theta: lora_files.save_lora(folder, theta, scale=scale),
  )
