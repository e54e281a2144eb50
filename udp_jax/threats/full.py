"""Fine-tuning all weights of a text-to-image model's U-Net on pictures and their captions."""

from __future__ import annotations

from typing import Any

from udp_jax.models import trainable
from udp_jax.models.base import DiffusionModel
from udp_jax.threats.base import Threat
from udp_jax.threats.finetuning import COMMON, fine_tune
from udp_jax.threats.passing import passes_on


@passes_on(fine_tune, *COMMON, "flip")
def full(
  model: DiffusionModel,
  *,
  learning_rate: float = 1e-5,
  ema_decay: float = 0.0,
  train_text_encoder: bool = False,
  **options: Any,
) -> Threat:
  """Full fine-tuning of the U-Net, and of the text encoder if asked (diffusers' text_to_image).

  A pixel model is trained as a whole.

  Args:
    model: what is fine-tuned.
    learning_rate: of AdamW, after the warm-up.
    ema_decay: of the averaged weights that are kept; 0 keeps no average.
    train_text_encoder: train the text encoder as well.
    **options: of `finetuning.fine_tune`, which are the same for all of these threats.

  Raises:
    ConfigError: unknown decay or sampler, or a step count that the schedule cannot serve.
  """
  theta = trainable.denoiser()
  if train_text_encoder:
    theta = trainable.joined(theta, trainable.part("text_encoder"))
  return fine_tune(
    model,
    theta,
    learning_rate=learning_rate,
    ema_decay=ema_decay,
    trains_text=train_text_encoder,
    **options,
  )
