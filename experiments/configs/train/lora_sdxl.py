"""Fine-tunes low-rank updates of the attention of Stable Diffusion XL.

python -m experiments.train --config=lora_sdxl --model=FOLDER --input=PICTURES \\
  --workdir=runs/lora_sdxl
FOLDER: Stable Diffusion XL in diffusers' layout. Captions: metadata.jsonl, or --prompt.
Source: the README of diffusers' train_text_to_image_lora_sdxl.py, two epochs of 833 pictures.
Hardware: one accelerator with 24 GiB or more. Time: not measured.
"""

from experiments.configs import finetuning


def get_config(variant=None):
  """The published setting; `variant` "smoke" takes a few steps."""
  config = finetuning.fine_tuning(
    "lora",
    "LoRA of Stable Diffusion XL",
    train_steps=1666,
    rank=4,
    learning_rate=1e-4,
    flip=True,
  )
  config.global_batch_size = 1
  return finetuning.finish(finetuning.frozen_xl(config), variant)
