"""Textual inversion (Gal et al., arXiv:2208.01618): pictures as a new word, all weights frozen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from udp_jax.models import trainable
from udp_jax.models.base import DiffusionModel
from udp_jax.models.learned_tokens import save_learned_token
from udp_jax.models.trainable import Theta
from udp_jax.threats.base import Threat
from udp_jax.threats.finetuning import COMMON, fine_tune
from udp_jax.threats.passing import passes_on


@passes_on(fine_tune, *COMMON, "flip")
def textual_inversion(
  model: DiffusionModel,
  *,
  token_ids: Sequence[int],
  init_from: Sequence[int] | int,
  token: str = "<concept>",
  learning_rate: float = 5e-4,
  **options: Any,
) -> Threat:
  """Learns the embedding of a new token from pictures captioned with it.

  `prompts.learn_token` gives the token's ids, `prompts.TEMPLATES` the sentences around it.
  `Threat.save` writes the file that PyTorch diffusers' `load_textual_inversion` opens.

  Args:
    model: what the token is learned for; it stays as it is.
    token_ids: ids of the new tokens, one a vector.
    init_from: ids of the tokens that the vectors start from, one for all or one each.
    token: how the token is written, for the file.
    learning_rate: of AdamW, after the warm-up.
    **options: of `finetuning.fine_tune`, which are the same for all of these threats.

  Raises:
    ConfigError: tokens that do not fit, unknown decay or sampler, or an unusable step count.
  """

  def save(folder: Path, theta: Theta) -> Path:
    return save_learned_token(folder, token, np.asarray(theta))

  return fine_tune(
    model,
    trainable.token_embedding(token_ids, init_from),
    learning_rate=learning_rate,
    trains_text=True,
    save=save,
    **options,
  )
