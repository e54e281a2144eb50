"""UDP in the paper's setting: as cifar10 of eudp, without its row.

python -m experiments.udp --config=cifar10 --workdir=runs/udp_cifar10, and what eudp's config says.
"""

from experiments.configs import common
from experiments.configs.eudp import cifar10


def get_config(variant=None):
  """See `experiments.configs.eudp.cifar10`."""
  return common.without_eudp(cifar10.get_config(variant))
