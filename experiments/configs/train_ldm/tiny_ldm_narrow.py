"""A second small model for transfer: other seed, three quarters of the width, fewer steps.

python -m experiments.train_ldm --config=tiny_ldm_narrow --config.data.photos=cifar10:PATH \\
  --config.data.paintings=folder:PATH --workdir=runs/tiny_ldm_narrow
About half an hour on one CPU core; runs/tiny_ldm_narrow/model is then a model folder.
"""

from experiments.configs import latent


def get_config(variant=None):
  """The data and the kinds of layers of tiny_ldm; `variant` "smoke" takes seconds."""
  config = latent.training("A second small text-conditioned latent diffusion model")
  config.seed = 1
  config.vae.block_out_channels = (16, 24, 48)
  config.unet.block_out_channels = (24, 48, 64)
  config.autoencoder.train_steps, config.denoiser.train_steps = 3000, 5000
  return latent.finish(config, variant)
