"""UDP in the evidence setting: the config `cifar10_small` of `experiments.eudp` without EUDP rows.

python -m experiments.udp --config=cifar10_small --workdir=runs/udp, and the flags of that config.
"""

from experiments.configs import common
from experiments.configs.eudp import cifar10_small


def get_config(variant=None):
  """See `experiments.configs.eudp.cifar10_small`."""
  return common.without_eudp(cifar10_small.get_config(variant))
