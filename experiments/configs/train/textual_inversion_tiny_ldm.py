"""Learns a new word for the model in the package (textual inversion).

python -m experiments.train --config=textual_inversion_tiny_ldm --input=PICTURES \\
  --workdir=runs/textual_inversion_tiny_ldm
Hardware: 2 CPU cores. Time: not measured yet.
"""

from experiments.configs import finetuning


def get_config(variant=None):
  """A short run on a CPU; `variant` "smoke" takes seconds."""
  config = finetuning.fine_tuning(
    "textual_inversion", "Textual inversion for tiny_ldm", train_steps=300, learning_rate=1e-2
  )
  config.concept.kind = "style"
  return finetuning.finish(finetuning.small(config), variant)
