"""Learns a new word for Stable Diffusion 1.5 (textual inversion).

python -m experiments.train --config=textual_inversion_sd15 --model=FOLDER --input=PICTURES \\
  --config.concept.init_word=toy --workdir=runs/textual_inversion_sd15
FOLDER: Stable Diffusion 1.5 in diffusers' layout. For a style: --config.concept.kind=style.
Source: Gal et al. in diffusers' textual_inversion.py, 3,000 steps of 4 at 4 * 5e-4.
Hardware: one accelerator with 16 GiB or more. Time: not measured.
"""

from experiments.configs import finetuning


def get_config(variant=None):
  """The published setting; `variant` "smoke" takes a few steps."""
  config = finetuning.fine_tuning(
    "textual_inversion",
    "Textual inversion for Stable Diffusion 1.5",
    train_steps=3000,
    learning_rate=2e-3,
    # The script clips no gradients, and flips pictures half of the time.
    clip_norm=0.0,
    flip=True,
  )
  return finetuning.finish(finetuning.stable_diffusion(config), variant)
