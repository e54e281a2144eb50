"""DreamBooth (Ruiz et al., arXiv:2208.12242): a subject from few pictures, its class preserved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from udp_jax.errors import ConfigError
from udp_jax.models import lora as low_rank
from udp_jax.models import trainable
from udp_jax.models.base import DiffusionModel
from udp_jax.threats.base import Threat
from udp_jax.threats.finetuning import COMMON, fine_tune
from udp_jax.threats.passing import passes_on
from udp_jax.training import Batch


@passes_on(fine_tune, *COMMON)
def dreambooth(
  model: DiffusionModel,
  *,
  prior_weight: float = 1.0,
  rank: int = 0,
  scale: float = 1.0,
  targets: Sequence[str] = low_rank.UNET_TARGETS,
  train_text_encoder: bool = False,
  learning_rate: float = 5e-6,
  **options: Any,
) -> Threat:
  """Fine-tuning on "a photo of sks CLASS" with the prior-preservation loss (equation 2).

  Class pictures, which the model made before it was trained, are half of every step: the data comes
  from `batches_with_prior`.

  Args:
    model: what is fine-tuned.
    prior_weight: of the class pictures' loss, lambda in the paper; 0 trains without them.
    rank: of low-rank updates; 0 trains all weights.
    scale: of low-rank updates; PEFT's lora_alpha / rank.
    targets: names of the U-Net's modules that get a low-rank update.
    train_text_encoder: train the text encoder as well (or its low-rank updates).
    learning_rate: of AdamW, after the warm-up.
    **options: of `finetuning.fine_tune`, which are the same for all of these threats.

  Raises:
    ConfigError: unusable prior_weight, rank, targets, decay, sampler or step count.
  """
  if prior_weight < 0:
    raise ConfigError(f"prior_weight is {prior_weight}; it must be at least 0")
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
    learning_rate=learning_rate,
    prior_weight=prior_weight,
    trains_text=train_text_encoder,
    save=(lambda folder, t: low_rank.save_lora(folder, t, scale=scale)) if rank else None,
    **options,
  )


def batches_with_prior(
  images: np.ndarray,
  cond: np.ndarray,
  prior_images: np.ndarray,
  prior_cond: np.ndarray,
  *,
  prior_weight: float,
  global_batch_size: int,
) -> Batch:
  """Batches whose first half are pictures of the subject, and whose second half of its class.

  The smaller set goes round until the larger has been seen, as in diffusers' script.

  Args:
    images: uint8 (N, H, W, 3), of the subject.
    cond: (N, ...), their prompts.
    prior_images: uint8 (M, H, W, 3), of its class.
    prior_cond: (M, ...), their prompts.
    prior_weight: of a class picture; a subject's picture has 1.
    global_batch_size: of both halves together; even.

  Raises:
    ConfigError: an odd batch, an empty set, or prompts or pictures of different kinds.
  """
  if global_batch_size % 2 or global_batch_size < 2:
    raise ConfigError(
      f"half of a batch are class pictures: a global batch of {global_batch_size} has no halves"
    )
  if not len(images) or not len(prior_images):
    raise ConfigError("DreamBooth needs pictures of the subject and of its class")
  if images.shape[1:] != prior_images.shape[1:] or cond.shape[1:] != prior_cond.shape[1:]:
    raise ConfigError(
      f"pictures {images.shape[1:]} with prompts {cond.shape[1:]} and class pictures "
      f"{prior_images.shape[1:]} with prompts {prior_cond.shape[1:]} do not go together"
    )
  half = global_batch_size // 2
  rows = -(-max(len(images), len(prior_images)) // half)
  places = np.arange(rows * half).reshape(rows, half)

  def arranged(own: np.ndarray, prior: np.ndarray) -> np.ndarray:
    return np.concatenate([own[places % len(own)], prior[places % len(prior)]], axis=1)

  weights = np.ones(half), np.full(half, prior_weight)
  return Batch(
    images=arranged(images, prior_images),
    # A place's own number and not the picture's: one picture may be in a batch several times.
    ids=np.concatenate([places, rows * half + places], axis=1).astype(np.int32),
    weight=np.broadcast_to(np.concatenate(weights), (rows, 2 * half)).astype(np.float32),
    cond=arranged(cond, prior_cond),
  )
