"""Textual inversion (Gal et al., arXiv:2208.01618): pictures as a new word, all weights frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from udp_jax.models import trainable
from udp_jax.models.base import DiffusionModel
from udp_jax.models.learned_tokens import save_learned_token
from udp_jax.models.trainable import Theta
from udp_jax.threats.base import Threat
from udp_jax.threats.finetuning import fine_tune


def textual_inversion(
  model: DiffusionModel,
  *,
  train_steps: int,
  token_ids: Sequence[int],
  init_from: Sequence[int] | int,
  token: str = "<concept>",
  learning_rate: float = 5e-4,
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
  """Learns the embedding of a new token from pictures captioned with it.

  `prompts.learn_token` gives the token's ids, `prompts.TEMPLATES` the sentences around it.
  `Threat.save` writes the file that PyTorch diffusers' `load_textual_inversion` opens.

  Args:
    model: what the token is learned for; it stays as it is.
    train_steps: optimiser steps.
    token_ids: ids of the new tokens, one a vector.
    init_from: ids of the tokens that the vectors start from, one for all or one each.
    token: how the token is written, for the file.
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
    ConfigError: tokens that do not fit, unknown decay or sampler, or an unusable step count.
  """

  def save(folder: Path, theta: Theta) -> Path:
    return save_learned_token(folder, token, np.asarray(theta))

  return fine_tune(
    model,
    trainable.token_embedding(token_ids, init_from),
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
    trains_text=True,
    save=save,
  )
