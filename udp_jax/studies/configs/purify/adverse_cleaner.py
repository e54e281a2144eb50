"""AdverseCleaner: 64 passes of a bilateral filter and 4 of a guided one, as published.

  python -m experiments.purify --config=adverse_cleaner --input=PROTECTED --output=PURIFIED

Hardware: any.
"""

from udp_jax.studies.configs.purification import purification


def get_config(variant: str | None = None):
  """The config; `smoke` makes only a few passes."""
  passes = {"bilateral_passes": 2, "guided_passes": 1} if variant == "smoke" else {}
  return purification("adverse_cleaner", **passes)
