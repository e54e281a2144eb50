"""Fine-tunes all weights of the U-Net of the model in the package.

python -m experiments.train --config=full_tiny_ldm --input=PICTURES \\
  --prompt='a painting' --workdir=runs/full_tiny_ldm
Hardware: 2 CPU cores. Time: not measured yet.
"""

from experiments.configs import finetuning


def get_config(variant=None):
  """A short run on a CPU; `variant` "smoke" takes seconds."""
  config = finetuning.fine_tuning(
    "full", "Full fine-tuning of tiny_ldm", train_steps=300, learning_rate=2e-4
  )
  return finetuning.finish(finetuning.small(config), variant)
