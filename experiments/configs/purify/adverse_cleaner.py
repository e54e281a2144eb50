"""AdverseCleaner: 64 bilateral filters and 4 guided ones, as published against Glaze and Mist.

  python -m experiments.purify --config=adverse_cleaner --input=PROTECTED --output=PURIFIED

Hardware: any.
"""

from experiments.configs.purification import purification


def get_config(variant: str | None = None):
  """The config; `smoke` makes few passes."""
  passes = {"bilateral_passes": 2, "guided_passes": 1} if variant == "smoke" else {}
  return purification("adverse_cleaner", **passes)
