"""Fine-tuning low-rank updates of a text-to-image model (Hu et al., arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from udp_jax.models import lora as low_rank
from udp_jax.models import trainable
from udp_jax.models.base import DiffusionModel
from udp_jax.threats.base import Threat
from udp_jax.threats.finetuning import fine_tune


def lora(
  model: DiffusionModel,
  *,
  train_steps: int,
  rank: int = 4,
  scale: float = 1.0,
  targets: Sequence[str] = low_rank.UNET_TARGETS,
  train_text_encoder: bool = False,
  learning_rate: float = 1e-4,
  warmup_steps: int = 0,
  decay: str = "constant",
  weight_decay: float = 1e-2,
  clip_norm: float = 1.0,
  flip: bool = False,
  sample_steps: int = 50,
  guidance_scale: float = 7.5,
  sampler: str = "ddim",
  scheduler: Mapping[str, Any] | None = None,
) -> Threat:
  """LoRA of the attention projections, as diffusers' train_text_to_image_lora.

  `Threat.save` writes the file that PyTorch diffusers' `load_lora_weights` opens.

  Args:
    model: what is fine-tuned; it stays as it is.
    train_steps: optimiser steps.
    rank: of the updates.
    scale: of the updates; PEFT's lora_alpha / rank.
    targets: names of the U-Net's modules that get an update.
    train_text_encoder: update the text encoder's attention projections as well.
    learning_rate: of AdamW, after the warm-up.
    warmup_steps: linear warm-up from 0.
    decay: "constant", or "cosine" to 0 over the rest.
    weight_decay: of AdamW.
    clip_norm: global norm at which the gradient is clipped.
    flip: train on pictures flipped left to right half of the time.
    sample_steps: of the sampler.
    guidance_scale: of samples; 1 for none.
    sampler: "ddim", "ddpm" or "dpm_solver_pp_2m".
    scheduler: the model's scheduler_config.json, for where its timesteps lie.

  Raises:
    ConfigError: unusable rank, targets, decay, sampler or step count.
  """
  text_targets = low_rank.TEXT_ENCODER_TARGETS if train_text_encoder else ()
  return fine_tune(
    model,
    trainable.lora(rank, scale, targets, text_encoder_targets=text_targets),
    train_steps=train_steps,
    learning_rate=learning_rate,
    warmup_steps=warmup_steps,
    decay=decay,
    weight_decay=weight_decay,
    clip_norm=clip_norm,
    flip=flip,
    sampling={
      "sampler": sampler,
      "sample_steps": sample_steps,
      "guidance_scale": guidance_scale,
      "scheduler": scheduler,
    },
    trains_text=train_text_encoder,
    save=lambda folder, theta: low_rank.save_lora(folder, theta, scale=scale),
  )
