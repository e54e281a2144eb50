"""Your own pictures: a folder, centre-cropped and resized to 32x32, protected and evaluated.

python -m experiments.eudp --config=folder --config.data.source=PICTURES --workdir=runs/mine
Hardware and time: like `demo` for up to about 2,000 pictures on 2 CPU cores.
"""

from udp_jax.studies.configs import common


def get_config(variant=None):
  """Like the demo, on a folder; `variant` "smoke" takes seconds."""
  config = common.study("EUDP on a folder of pictures")
  config.notice = (
    "A small model trained for a short time with one seed: read differences, not absolute numbers."
  )
  config.data.source = ""
  return common.finish(config, variant)
