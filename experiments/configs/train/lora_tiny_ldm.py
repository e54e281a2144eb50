"""Fine-tunes low-rank updates of the attention of the model in the package.

python -m experiments.train --config=lora_tiny_ldm --input=PICTURES \\
  --prompt='a painting' --workdir=runs/lora_tiny_ldm
Hardware: 2 CPU cores. Time: not measured yet.
"""

from experiments.configs import finetuning


def get_config(variant=None):
  """A short run on a CPU; `variant` "smoke" takes seconds."""
  config = finetuning.fine_tuning(
    "lora", "LoRA of tiny_ldm", train_steps=300, rank=8, learning_rate=2e-3
  )
  return finetuning.finish(finetuning.small(config), variant)
