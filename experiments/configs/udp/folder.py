"""UDP on your own pictures: as folder of eudp, without its row.

python -m experiments.udp --config=folder --workdir=runs/udp_folder, and what eudp's config says.
"""

from experiments.configs.eudp import folder


def get_config(variant=None):
  """See `experiments.configs.eudp.folder`."""
  config = folder.get_config(variant)
  config.rows = tuple(row for row in config.rows if "eudp" not in row)
  config.title = config.title.replace("UDP, EUDP", "UDP").replace("EUDP", "UDP")
  return config
