"""The first run of UDP: the config `demo` of `experiments.eudp` without its EUDP row.

python -m experiments.udp --config=demo --workdir=runs/udp_demo, and the flags of that config.
"""

from experiments.configs import common
from experiments.configs.eudp import demo


def get_config(variant=None):
  """See `experiments.configs.eudp.demo`; the noise has UDP's values."""
  config = common.without_eudp(demo.get_config(variant))
  config.rows = ("clean", "udp_matched_noise", "udp")
  return config
