"""A DDPM from scratch on 16x16 pictures, like the trained models of study `demo_pixels`.

python -m experiments.train --config=demo --input=PICTURES --workdir=runs/train
Hardware and time: see experiments/configs/eudp/demo_pixels.py.
"""

from experiments.configs.eudp import demo_pixels


def get_config(variant=None):
  """The config of the study; `variant` "smoke" takes seconds."""
  return demo_pixels.get_config(variant)
