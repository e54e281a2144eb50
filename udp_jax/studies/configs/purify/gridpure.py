"""GrIDPure: 20 rounds of 10 diffusion steps over a grid of windows, for pictures of any size.

  python -m experiments.purify --config=gridpure --model=FOLDER --input=PROTECTED --output=PURIFIED

FOLDER is a diffusion model for square pictures; the paper's is for 256x256. Hardware: an
accelerator for a model of that size.
"""

from udp_jax.studies.configs.purification import purification


def get_config(variant: str | None = None):
  """The config; `smoke` makes one round of two steps."""
  few = {"num_iterations": 1, "timestep": 2} if variant == "smoke" else {}
  return purification("gridpure", **few)
