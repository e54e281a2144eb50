"""Fine-tuning low-rank updates of a text-to-image model (Hu et al., arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from udp_jax.models import lora as low_rank
from udp_jax.models import trainable
from udp_jax.models.base import DiffusionModel
from udp_jax.threats.base import Threat
from udp_jax.threats.finetuning import COMMON, fine_tune
from udp_jax.threats.passing import passes_on


@passes_on(fine_tune, *COMMON, "flip")
def lora(
  model: DiffusionModel,
  *,
  rank: int = 4,
  scale: float = 1.0,
  targets: Sequence[str] = low_rank.UNET_TARGETS,
  train_text_encoder: bool = False,
  learning_rate: float = 1e-4,
  **options: Any,
) -> Threat:
  """LoRA of the attention projections, as diffusers' train_text_to_image_lora.

  `Threat.save` writes the file that PyTorch diffusers' `load_lora_weights` opens.

  Args:
    model: what is fine-tuned; it stays as it is.
    rank: of the updates.
    scale: of the updates; PEFT's lora_alpha / rank.
    targets: names of the U-Net's modules that get an update.
    train_text_encoder: update the text encoder's attention projections as well.
    learning_rate: of AdamW, after the warm-up.
    **options: of `finetuning.fine_tune`, which are the same for all of these threats.

  Raises:
    ConfigError: unusable rank, targets, decay, sampler or step count.
  """
  text_targets = low_rank.TEXT_ENCODER_TARGETS if train_text_encoder else ()
  return fine_tune(
    model,
    trainable.lora(rank, scale, targets, text_encoder_targets=text_targets),
    learning_rate=learning_rate,
    trains_text=train_text_encoder,
    save=lambda folder, theta: low_rank.save_lora(folder, theta, scale=scale),
    **options,
  )
