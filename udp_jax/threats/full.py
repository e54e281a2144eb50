"""Fine-tuning all weights of a text-to-image model's U-Net on pictures and their captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from udp_jax.models import trainable
from udp_jax.models.base import DiffusionModel
from udp_jax.threats.base import Threat
from udp_jax.threats.finetuning import fine_tune


def full(
  model: DiffusionModel,
  *,
  train_steps: int,
  learning_rate: float = 1e-5,
  warmup_steps: int = 0,
  decay: str = "constant",
  weight_decay: float = 1e-2,
  clip_norm: float = 1.0,
  ema_decay: float = 0.0,
  flip: bool = False,
  train_text_encoder: bool = False,
  sample_steps: int = 50,
  guidance_scale: float = 7.5,
  sampler: str = "ddim",
  scheduler: Mapping[str, Any] | None = None,
) -> Threat:
  """Full fine-tuning of the U-Net, and of the text encoder if asked (diffusers' text_to_image).

  A pixel model is trained as a whole.

  Args:
    model: what is fine-tuned.
    train_steps: optimiser steps.
    learning_rate: of AdamW, after the warm-up.
    warmup_steps: linear warm-up from 0.
    decay: "constant", or "cosine" to 0 over the rest.
    weight_decay: of AdamW.
    clip_norm: global norm at which the gradient is clipped.
    ema_decay: of the averaged weights that are kept; 0 keeps no average.
    flip: train on pictures flipped left to right half of the time.
    train_text_encoder: train the text encoder as well.
    sample_steps: of the sampler.
    guidance_scale: of samples; 1 for none.
    sampler: "ddim", "ddpm" or "dpm_solver_pp_2m".
    scheduler: the model's scheduler_config.json, for where its timesteps lie.

  Raises:
    ConfigError: unknown decay or sampler, or a step count that the schedule cannot serve.
  """
  theta = trainable.denoiser()
  if train_text_encoder:
    theta = trainable.joined(theta, trainable.part("text_encoder"))
  return fine_tune(
    model,
    theta,
    train_steps=train_steps,
    learning_rate=learning_rate,
    warmup_steps=warmup_steps,
    decay=decay,
    weight_decay=weight_decay,
    clip_norm=clip_norm,
    ema_decay=ema_decay,
    flip=flip,
    sampling={
      "sampler": sampler,
      "sample_steps": sample_steps,
      "guidance_scale": guidance_scale,
      "scheduler": scheduler,
    },
    trains_text=train_text_encoder,
  )
