"""UDP on your own pictures: the config `folder` of `experiments.eudp` without its EUDP row.

python -m experiments.udp --config=folder --workdir=runs/udp_folder, and the flags of that config.
"""

from experiments.configs import common
from udp_jax.studies.configs.eudp import folder


def get_config(variant=None):
  """See `udp_jax.studies.configs.eudp.folder`."""
  return common.without_eudp(folder.get_config(variant))
