"""UDP on your own pictures: as folder of eudp, without its row.

python -m experiments.udp --config=folder --workdir=runs/udp_folder, and what eudp's config says.
"""

from experiments.configs import common
from experiments.configs.eudp import folder


def get_config(variant=None):
  """See `experiments.configs.eudp.folder`."""
  return common.without_eudp(folder.get_config(variant))
