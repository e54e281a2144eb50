"""A DDPM from scratch on 16x16 pictures, like the trained models of study `demo`.

python -m experiments.train --config=demo --input=PICTURES --workdir=runs/train
Hardware and time: see experiments/configs/eudp/demo.py.
"""

from experiments.configs.eudp import demo


def get_config(variant=None):
  """The config of the study; `variant` "smoke" takes seconds."""
  return demo.get_config(variant)
