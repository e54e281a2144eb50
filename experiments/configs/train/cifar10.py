"""A DDPM from scratch, 35.7 M parameters at 32x32, like the trained models of study `cifar10`.

python -m experiments.train --config=cifar10 --input=PICTURES --workdir=runs/train
Hardware and time: see experiments/configs/eudp/cifar10.py.
"""

from experiments.configs.eudp import cifar10


def get_config(variant=None):
  """The config of the study; `variant` "smoke" takes seconds."""
  return cifar10.get_config(variant)
