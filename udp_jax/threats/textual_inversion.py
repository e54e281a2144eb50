"""Textual inversion (Gal et al., arXiv:2208.01618): learns a new word, with all weights frozen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np

from udp_jax.models import trainable
from udp_jax.models.base import DiffusionModel
from udp_jax.models.learned_tokens import save_learned_token
from udp_jax.models.sampling import Sampling
from udp_jax.models.trainable import Theta
from udp_jax.threats.base import Threat
from udp_jax.threats.finetuning import SAMPLING, Training, fine_tune


def textual_inversion(
  model: DiffusionModel,
  *,
  train_steps: int,
  token_ids: Sequence[int],
  init_from: Sequence[int] | int,
  token: str = "<concept>",
  training: Training = Training(learning_rate=2e-3, clip_norm=0.0, flip=True),
  sampling: Annotated[Sampling, SAMPLING] = Sampling(),
) -> Threat:
  """Learns the embedding of a new token from pictures captioned with it.

  `prompts.learn_token` gives the token's ids, `prompts.TEMPLATES` the sentences that contain it.
  `Threat.save` writes the file that PyTorch diffusers' `load_textual_inversion` opens.

  Args:
    model: the model that the token is learned for; its parameters do not change.
    train_steps: total number of optimiser steps.
    token_ids: ids of the new tokens, one for each learned vector.
    init_from: ids of the tokens that the vectors start from, one for all or one for each.
    token: the token as it is written in prompts and in the saved file.
    training: learning rate, warm-up, decays, clipping, averaging and flips. The defaults are those
      of diffusers' script for batches of 4: 4 * 5e-4, no clipping, flips (`udp_jax.published`).
    sampling: how the fine-tuned model is sampled from.

  Raises:
    ConfigError: tokens do not fit, or the decay, sampler or step count cannot be used.

  >>> from udp_jax.models import toy
  >>> words = {"token_ids": [49408], "init_from": 320}  # A new token, and "a".
  >>> threat = textual_inversion(
  ...   toy.on_pixels(), train_steps=20, **words, sampling=Sampling(sample_steps=10)
  ... )
  >>> threat.needs_token_ids
  True
  """

  def save(folder: Path, theta: Theta) -> Path:
    return save_learned_token(folder, token, np.asarray(theta))

  return fine_tune(
    model,
    trainable.token_embedding(token_ids, init_from),
    train_steps=train_steps,
    training=training,
    sampling=sampling,
    trains_text=True,
    save=save,
  )
