"""UDP in the evidence setting: as cifar10_small of eudp, without its rows.

python -m experiments.udp --config=cifar10_small --workdir=runs/udp, and what eudp's config says.
"""

from experiments.configs import common
from experiments.configs.eudp import cifar10_small


def get_config(variant=None):
  """See `experiments.configs.eudp.cifar10_small`."""
  return common.without_eudp(cifar10_small.get_config(variant))
