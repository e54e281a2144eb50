"""Writes the tables in this folder: the tensors of the published Stable Diffusion models.

Run it in the virtual environment of `make parity`, from the repository's root:

  .venv-parity/bin/python tests/models/published/make_tables.py

PyTorch diffusers and transformers build the architectures of the published config.json files on the
meta device (no weights) and say the names and shapes of their tensors. The configs below are those
files' architectural fields, from

  sd14_unet             CompVis/stable-diffusion-v1-4, unet/; the same as v1-5's, which has no table
  sd15_inpainting_unet  stable-diffusion-v1-5/stable-diffusion-inpainting, unet/
  sd21_unet             stabilityai/stable-diffusion-2-1, unet/
  sd_vae                vae/ of all of them
  clip_vit_l14_text     text_encoder/ of 1.x (openai/clip-vit-large-patch14)
  openclip_h_text       text_encoder/ of 2.1 (OpenCLIP ViT-H/14 of LAION, 23 of 24 layers)

Published files differ from the tables in names alone: the oldest autoencoders say query, key, value
and proj_attn for to_q, to_k, to_v and to_out.0; transformers 5 leaves out "text_model.", which the
published files have, and so do the tables. Each file is a config and name -> shape; that of the
inpainting model lists what is not as in `sd14_unet`.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

HERE = Path(__file__).parent

SD14_UNET = {
  "sample_size": 64,
  "in_channels": 4,
  "out_channels": 4,
  "center_input_sample": False,
  "flip_sin_to_cos": True,
  "freq_shift": 0,
  "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
  "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
  "block_out_channels": [320, 640, 1280, 1280],
  "layers_per_block": 2,
  "downsample_padding": 1,
  "mid_block_scale_factor": 1,
  "act_fn": "silu",
  "norm_num_groups": 32,
  "norm_eps": 1e-5,
  "cross_attention_dim": 768,
  "attention_head_dim": 8,
}
SD21_UNET = SD14_UNET | {
  "sample_size": 96,
  "cross_attention_dim": 1024,
  "attention_head_dim": [5, 10, 20, 20],
  "use_linear_projection": True,
  "upcast_attention": True,
  "dual_cross_attention": False,
  "only_cross_attention": False,
  "num_class_embeds": None,
}
SD_VAE = {
  "sample_size": 512,
  "in_channels": 3,
  "out_channels": 3,
  "latent_channels": 4,
  "down_block_types": ["DownEncoderBlock2D"] * 4,
  "up_block_types": ["UpDecoderBlock2D"] * 4,
  "block_out_channels": [128, 256, 512, 512],
  "layers_per_block": 2,
  "norm_num_groups": 32,
  "act_fn": "silu",
}
CLIP_VIT_L14_TEXT = {
  "vocab_size": 49408,
  "hidden_size": 768,
  "intermediate_size": 3072,
  "projection_dim": 768,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "max_position_embeddings": 77,
  "hidden_act": "quick_gelu",
  "layer_norm_eps": 1e-5,
}
OPENCLIP_H_TEXT = CLIP_VIT_L14_TEXT | {
  "hidden_size": 1024,
  "intermediate_size": 4096,
  "projection_dim": 512,
  "num_hidden_layers": 23,
  "num_attention_heads": 16,
  "hidden_act": "gelu",
}

UNETS = {
  "sd14_unet": SD14_UNET,
  "sd15_inpainting_unet": SD14_UNET | {"in_channels": 9},
  "sd21_unet": SD21_UNET,
}
TEXTS = {"clip_vit_l14_text": CLIP_VIT_L14_TEXT, "openclip_h_text": OPENCLIP_H_TEXT}


def shapes(model: torch.nn.Module, prefix: str = "") -> dict[str, list[int]]:
  """Name -> shape of a model's parameters."""
  names = {name: list(value.shape) for name, value in model.named_parameters()}
  return {name if name.startswith(prefix) else prefix + name: names[name] for name in sorted(names)}


def write(name: str, content: dict) -> None:
  """Writes one table, a line a tensor."""
  tensors = ",\n".join(f"{json.dumps(k)}:{json.dumps(v)}" for k, v in content["tensors"].items())
  rest = "".join(
    f"{json.dumps(k)}:{json.dumps(v)},\n" for k, v in content.items() if k != "tensors"
  )
  (HERE / f"{name}.json").write_text(f'{{{rest}"tensors":{{\n{tensors}\n}}}}\n')


def main() -> None:
  """Writes every table."""
  tables = {}
  with torch.device("meta"):
    for name, config in UNETS.items():
      tables[name] = {"config": config, "tensors": shapes(UNet2DConditionModel(**config))}
    tables["sd_vae"] = {"config": SD_VAE, "tensors": shapes(AutoencoderKL(**SD_VAE))}
    for name, config in TEXTS.items():
      model = CLIPTextModel(CLIPTextConfig(**config))
      tables[name] = {"config": config, "tensors": shapes(model, "text_model.")}
  base, inpainting = tables["sd14_unet"]["tensors"], tables["sd15_inpainting_unet"]
  assert base.keys() == inpainting["tensors"].keys()
  inpainting["as"] = "sd14_unet"
  inpainting["tensors"] = {k: v for k, v in inpainting["tensors"].items() if v != base[k]}
  for name, content in tables.items():
    write(name, content)


if __name__ == "__main__":
  main()
