"""The front door for UDP: as the demo of eudp, without its row.

python -m experiments.udp --config=demo --workdir=runs/udp_demo, and what eudp's config says.
"""

from experiments.configs.eudp import demo


def get_config(variant=None):
  """See `experiments.configs.eudp.demo`."""
  config = demo.get_config(variant)
  config.rows = tuple(row for row in config.rows if "eudp" not in row)
  config.title = config.title.replace("UDP, EUDP", "UDP").replace("EUDP", "UDP")
  return config
