"""UDP on CIFAR-10 at full size: the config `cifar10` of `experiments.eudp` without its EUDP row.

python -m experiments.udp --config=cifar10 --workdir=runs/udp_cifar10, and the flags of that config.
"""

from experiments.configs import common
from experiments.configs.eudp import cifar10


def get_config(variant=None):
  """See `experiments.configs.eudp.cifar10`."""
  return common.without_eudp(cifar10.get_config(variant))
