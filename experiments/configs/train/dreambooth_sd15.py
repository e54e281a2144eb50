"""DreamBooth with prior preservation on Stable Diffusion 1.5.

python -m experiments.train --config=dreambooth_sd15 --model=FOLDER --input=PICTURES \\
  --prompt='a photo of sks dog' --class_prompt='a photo of a dog' --workdir=runs/dreambooth_sd15
FOLDER: Stable Diffusion 1.5 in diffusers' layout. The text encoder is trained too.
Source: Ruiz et al. in diffusers' train_dreambooth.py, 800 steps, 200 class pictures.
Hardware: one accelerator with 40 GiB or more. Time: not measured.
"""

from experiments.configs import finetuning


def get_config(variant=None):
  """The published setting; `variant` "smoke" takes a few steps."""
  config = finetuning.fine_tuning(
    "dreambooth",
    "DreamBooth of Stable Diffusion 1.5",
    train_steps=800,
    learning_rate=2e-6,
    train_text_encoder=True,
    prior_weight=1.0,
    # Rank of low-rank updates; 0 trains all weights.
    rank=0,
  )
  # Each step takes one picture of the subject and one of its class.
  config.global_batch_size = 2
  return finetuning.finish(finetuning.stable_diffusion(config), variant)
