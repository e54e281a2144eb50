"""UDP on crops of photographs: the config `demo_pixels` of `experiments.eudp` without its EUDP row.

python -m experiments.udp --config=demo_pixels --workdir=runs/udp_pixels, and the flags of that
config.
"""

from experiments.configs import common
from experiments.configs.eudp import demo_pixels


def get_config(variant=None):
  """See `experiments.configs.eudp.demo_pixels`."""
  return common.without_eudp(demo_pixels.get_config(variant))
