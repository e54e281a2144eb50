"""DreamBooth with prior preservation on the model in the package.

python -m experiments.train --config=dreambooth_tiny_ldm --input=PICTURES \\
  --prompt='a painting by sks' --class_prompt='a painting' --workdir=runs/dreambooth_tiny_ldm
Hardware: 2 CPU cores. Time: not measured yet.
"""

from experiments.configs import finetuning


def get_config(variant=None):
  """A short run on a CPU; `variant` "smoke" takes seconds."""
  config = finetuning.fine_tuning(
    "dreambooth",
    "DreamBooth of tiny_ldm",
    train_steps=300,
    learning_rate=1e-4,
    train_text_encoder=True,
    prior_weight=1.0,
    # Rank of low-rank updates; 0 trains all weights.
    rank=0,
  )
  return finetuning.finish(finetuning.small(config), variant)
