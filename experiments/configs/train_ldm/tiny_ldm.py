"""The small latent diffusion model in the package: 64x64 pixels, about 75 minutes on one CPU core.

python -m experiments.train_ldm --config=tiny_ldm --config.data.photos=cifar10:PATH \\
  --config.data.paintings=folder:PATH --workdir=runs/tiny_ldm
Without the two paths it trains on the photographs in scikit-image and scikit-learn.
Expected numbers: udp_jax/models/tiny_ldm/README.md, which describes a run of this config.
"""

from experiments.configs import latent


def get_config(variant=None):
  """The model of the package; `variant` "smoke" takes seconds."""
  config = latent.training("A small text-conditioned latent diffusion model")
  return latent.finish(config, variant)
