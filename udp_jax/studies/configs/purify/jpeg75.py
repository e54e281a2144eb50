"""JPEG at quality 75 through the real codec, as most studies of purification do.

  python -m experiments.purify --config=jpeg75 --input=PROTECTED --output=PURIFIED

Hardware: any; one core does hundreds of 512x512 pictures per minute.
"""

from udp_jax.studies.configs.purification import purification


def get_config(variant: str | None = None):
  """The config."""
  del variant
  return purification("jpeg", quality=75)
