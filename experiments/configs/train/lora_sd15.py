"""Fine-tunes low-rank updates of the attention of Stable Diffusion 1.5.

python -m experiments.train --config=lora_sd15 --model=FOLDER --input=PICTURES \\
  --workdir=runs/lora_sd15
FOLDER: Stable Diffusion 1.5 in diffusers' layout. Captions: metadata.jsonl, or --prompt.
Source: diffusers' train_text_to_image_lora.py, 15,000 steps of 4.
Hardware: one accelerator with 16 GiB or more. Time: not measured.
"""

from experiments.configs import finetuning


def get_config(variant=None):
  """The published setting; `variant` "smoke" takes a few steps."""
  config = finetuning.fine_tuning(
    "lora",
    "LoRA of Stable Diffusion 1.5",
    train_steps=15000,
    rank=4,
    learning_rate=1e-4,
    decay="cosine",
    flip=True,
  )
  return finetuning.finish(finetuning.stable_diffusion(config), variant)
