"""DreamBooth by low-rank updates of Stable Diffusion XL, without prior preservation.

python -m experiments.train --config=dreambooth_sdxl --model=FOLDER --input=PICTURES \\
  --prompt='a photo of sks dog' --workdir=runs/dreambooth_sdxl
FOLDER: Stable Diffusion XL in diffusers' layout. Neither text encoder is trained.
Source: the README of diffusers' train_dreambooth_lora_sdxl.py, 500 steps of 4.
Hardware: one accelerator with 40 GiB or more. Time: not measured.
"""

from experiments.configs import finetuning


def get_config(variant=None):
  """The published setting; `variant` "smoke" takes a few steps."""
  config = finetuning.fine_tuning(
    "dreambooth",
    "DreamBooth of Stable Diffusion XL by LoRA",
    train_steps=500,
    rank=4,
    learning_rate=1e-4,
    train_text_encoder=False,
    prior_weight=0.0,
  )
  return finetuning.finish(finetuning.frozen_xl(config), variant)
