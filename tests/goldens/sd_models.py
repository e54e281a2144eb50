"""Small Stable Diffusion models for comparisons: configs, weights and inputs, from NumPy alone.

Weights and inputs are drawn from NumPy's `RandomState`, whose stream never changes, so that no file
has to keep them: both sides of a comparison make their own.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np

_UNET = {
  "sample_size": 8,
  "in_channels": 4,
  "out_channels": 4,
  "block_out_channels": [8, 16],
  "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
  "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
  "layers_per_block": 1,
  "norm_num_groups": 4,
  "cross_attention_dim": 12,
  "attention_head_dim": 4,
}
UNET_1 = _UNET
# An epsilon this large shows at once where another one is used.
UNET_INPAINTING = _UNET | {"in_channels": 9, "norm_eps": 1e-2}
UNET_2 = _UNET | {
  "attention_head_dim": [2, 4],
  "use_linear_projection": True,
  "upcast_attention": True,
}
UNETS = {"1": UNET_1, "2": UNET_2, "inpainting": UNET_INPAINTING}

_TEXT = {
  "vocab_size": 50,
  "hidden_size": 12,
  "intermediate_size": 20,
  "num_hidden_layers": 2,
  "num_attention_heads": 3,
  "max_position_embeddings": 16,
  "bos_token_id": 48,
  "eos_token_id": 49,
}
TEXTS = {name: _TEXT | {"hidden_act": name} for name in ("quick_gelu", "gelu")}

VAE = {
  "sample_size": 16,
  "in_channels": 3,
  "out_channels": 3,
  "latent_channels": 4,
  "block_out_channels": [8, 16],
  "down_block_types": ["DownEncoderBlock2D"] * 2,
  "up_block_types": ["UpDecoderBlock2D"] * 2,
  "layers_per_block": 1,
  "norm_num_groups": 4,
  "scaling_factor": 0.5,
}
# Stable Diffusion's own schedule.
SCHEDULER = {
  "beta_start": 0.00085,
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "num_train_timesteps": 1000,
  "clip_sample": False,
  "steps_offset": 1,
}


def draw(name: str, *shape: int) -> np.ndarray:
  """Standard normal float32 numbers, the same ones for the same name everywhere."""
  state = np.random.RandomState(zlib.crc32(name.encode()))
  return state.standard_normal(shape).astype(np.float32)


def tensors(shapes: Mapping[str, tuple[int, ...]], seed: str = "") -> dict[str, np.ndarray]:
  """Weights under PyTorch's names, norms and biases included, far from any initialiser's."""
  made = {}
  for name, shape in shapes.items():
    # transformers 5 leaves the prefix out.
    noise = draw(seed + name.removeprefix("text_model."), *shape)
    if len(shape) > 1:
      made[name] = noise / np.float32(math.sqrt(math.prod(shape[1:])))
    else:
      centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
      made[name] = np.asarray(np.float32(0.3) * noise + np.float32(centre), np.float32)
  return made


def unet_inputs(fields: Mapping, batch: int = 2, length: int = 7) -> dict[str, np.ndarray]:
  """x_t and the cotangent of the output (B, H, W, C), timesteps (B,), cond (B, L, D)."""
  size = (batch, fields["sample_size"], fields["sample_size"])
  return {
    "x_t": draw("x_t", *size, fields["in_channels"]),
    "cotangent": draw("cotangent", *size, fields["out_channels"]),
    "timesteps": np.array([3, 871, 500, 20][:batch]),
    "cond": draw("cond", batch, length, fields["cross_attention_dim"]),
  }


def latent_inputs(
  unet_fields: Mapping, vae_fields: Mapping, batch: int = 2
) -> dict[str, np.ndarray]:
  """Pictures in [0, 1], the posterior's and the diffusion's noise, timesteps, cond."""
  side = unet_fields["sample_size"]
  latents = (batch, side, side, vae_fields["latent_channels"])
  size = vae_fields["sample_size"]
  inputs = unet_inputs(unet_fields, batch)
  return {
    "images": 0.5 + 0.5 * np.tanh(draw("images", batch, size, size, 3)),
    "posterior_noise": draw("posterior", *latents),
    "noise": draw("noise", *latents),
    "timesteps": inputs["timesteps"],
    "cond": inputs["cond"],
  }


def token_ids(fields: Mapping, batch: int = 2) -> np.ndarray:
  """(B, L) token ids."""
  state = np.random.RandomState(0)
  return state.randint(0, fields["vocab_size"], (batch, fields["max_position_embeddings"]))
