"""Architectures of the published Stable Diffusion models, so that they compile without weights.

The names are values of `config.model.architecture`. Sizes follow the models' own config.json files
(CompVis/stable-diffusion-v1-4, runwayml/stable-diffusion-inpainting, stabilityai/stable-diffusion-
2-1, stabilityai/stable-diffusion-xl-base-1.0); tests compare the names and shapes of all tensors
with the published ones.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from udp_jax.errors import ConfigError
from udp_jax.models.clip_text import CLIPTextConfig
from udp_jax.models.latent import TEXT, TEXT_2, UNET, VAE
from udp_jax.models.sd_unet import UNet2DConditionConfig
from udp_jax.models.sd_vae import AutoencoderKLConfig

_SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
_VERSION_1: dict[str, Any] = {
  UNET: UNet2DConditionConfig(),
  VAE: AutoencoderKLConfig(),
  TEXT: CLIPTextConfig(),
}
_VERSION_2 = {
  UNET: UNet2DConditionConfig(
    sample_size=96,
    cross_attention_dim=1024,
    attention_head_dim=(5, 10, 20, 20),
    use_linear_projection=True,
  ),
  VAE: AutoencoderKLConfig(sample_size=768),
  TEXT: CLIPTextConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=23,
    num_attention_heads=16,
    hidden_act="gelu",
    projection_dim=512,
  ),
}
_XL: dict[str, Any] = {
  UNET: UNet2DConditionConfig(
    sample_size=128,
    block_out_channels=(320, 640, 1280),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 2, 10),
    attention_head_dim=(5, 10, 20),
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
  ),
  VAE: AutoencoderKLConfig(sample_size=1024, scaling_factor=0.13025),
  TEXT: CLIPTextConfig(bos_token_id=0, eos_token_id=2),
  TEXT_2: CLIPTextConfig(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    hidden_act="gelu",
    projection_dim=1280,
    bos_token_id=0,
    eos_token_id=2,
    # The config says 1; this is what the tokenizer does.
    pad_token_id=0,
  ),
}
_INPAINTING = _VERSION_1 | {UNET: UNet2DConditionConfig(in_channels=9)}
ARCHITECTURES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
  "sd14": (_VERSION_1, _SCHEDULER),
  "sd15": (_VERSION_1, _SCHEDULER),
  "sd15_inpainting": (_INPAINTING, _SCHEDULER),
  "sdxl": (_XL, _SCHEDULER),
  "sdxl_inpainting": (
    _XL | {UNET: dataclasses.replace(_XL[UNET], in_channels=9)},
    _SCHEDULER,
  ),
  "sd21": (_VERSION_2, _SCHEDULER | {"prediction_type": "v_prediction"}),
}


def architecture(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns (configs by part, scheduler fields) for `pipeline.build_model`.

  Raises:
    ConfigError: the name is unknown.
  """
  if name not in ARCHITECTURES:
    raise ConfigError(f"unknown architecture {name!r}; known: {', '.join(ARCHITECTURES)}")
  return ARCHITECTURES[name]
