"""Fine-tunes all weights of the U-Net of Stable Diffusion 1.5.

python -m experiments.train --config=full_sd15 --model=FOLDER --input=PICTURES \\
  --workdir=runs/full_sd15
FOLDER: Stable Diffusion 1.5 in diffusers' layout. Captions: metadata.jsonl, or --prompt.
Source: the README of diffusers' train_text_to_image.py, 15,000 steps of 4.
Hardware: one accelerator with 40 GiB or more. Time: not measured.
"""

from experiments.configs import finetuning


def get_config(variant=None):
  """The published setting; `variant` "smoke" takes a few steps."""
  config = finetuning.fine_tuning(
    "full",
    "Full fine-tuning of Stable Diffusion 1.5",
    train_steps=15000,
    learning_rate=1e-5,
    ema_decay=0.9999,
    flip=True,
  )
  return finetuning.finish(finetuning.stable_diffusion(config), variant)
