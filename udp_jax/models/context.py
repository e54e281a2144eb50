"""A model together with its parameters, tokenizer and pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from udp_jax.models import pipeline
from udp_jax.models.base import DiffusionModel, Params, embed_prompts
from udp_jax.models.ddpm_unet import UNet2DConfig
from udp_jax.models.pipeline import Pipeline
from udp_jax.models.tokenizer import Tokenizer


class Model(NamedTuple):
  """A model of any kind, in the form that protections, purifiers and threats receive.

  Attributes:
    model: functions of the model.
    params: loaded parameters; None for a fresh model.
    unet: config of a pixel model's U-Net, for saving; None for a latent model.
    pipeline: content of a latent model's folder; None for a pixel model.
    measuring: the same model with `encode` returning the posterior mean, used for measurements.
  """

  model: DiffusionModel
  params: Params | None = None
  unet: UNet2DConfig | None = None
  pipeline: Pipeline | None = None
  measuring: DiffusionModel | None = None

  @property
  def is_latent(self) -> bool:
    """Whether a VAE lies between pictures and x0."""
    return self.pipeline is not None

  @property
  def tokenizer(self) -> Tokenizer | None:
    """Tokenizer of a model with prompts; None for other models."""
    return None if self.pipeline is None else self.pipeline.tokenizer

  @property
  def uncond_ids(self) -> tuple[int, ...] | None:
    """Token ids (L,) of the empty prompt, for guidance; None for a model without prompts."""
    ids = self.token_ids([""])
    return None if ids is None else tuple(ids[0].tolist())

  @property
  def for_options(self) -> dict[str, Any]:
    """Options that methods may request by name and that a config cannot express."""
    if self.pipeline is None:
      return {}
    unet, vae = self.pipeline.configs[pipeline.UNET], self.pipeline.configs[pipeline.VAE]
    return {
      "scheduler": self.pipeline.scheduler,
      "inpainting_unet": unet.in_channels > vae.latent_channels,
    }

  def token_ids(self, texts: Sequence[str]) -> np.ndarray | None:
    """Returns token ids (N, L) of prompts; None for a model without prompts."""
    return None if self.tokenizer is None else self.tokenizer(list(texts))

  def embeddings(self, texts: Sequence[str]) -> np.ndarray | None:
    """Returns embeddings (N, L, D) of prompts; None for a model without prompts."""
    ids = self.token_ids(texts)
    return None if ids is None else embed_prompts(self.model, self.params, ids)
