"""The front door for UDP: as the demo of eudp, without its row.

python -m experiments.udp --config=demo --workdir=runs/udp_demo, and what eudp's config says.
"""

from experiments.configs import common
from experiments.configs.eudp import demo


def get_config(variant=None):
  """See `experiments.configs.eudp.demo`."""
  return common.without_eudp(demo.get_config(variant))
