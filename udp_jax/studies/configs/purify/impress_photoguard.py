"""IMPRESS with the settings of its published run against PhotoGuard (1000 steps).

  python -m experiments.purify --config=impress_photoguard --model=FOLDER \\
    --input=PROTECTED --output=PURIFIED

See `impress_glaze` about the distance and the hardware.
"""

from udp_jax.studies.configs.purification import purification


def get_config(variant: str | None = None):
  """The config; `smoke` makes only a few steps."""
  return purification(
    "impress",
    num_steps=4 if variant == "smoke" else 1000,
    learning_rate=0.005,
    perceptual_weight=0.01,
    perceptual_budget=0.1,
    noise_std=0.05,
  )
