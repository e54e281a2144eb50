"""Pictures of any size against the small latent diffusion model of the package; runs on a CPU.

python -m experiments.eudp --config=tiny_ldm --config.data.source=PICTURES --workdir=runs/tiny
Hardware: 2 CPU cores. Time: under 10 minutes for one or two megapixels. The model is small and our
own: a protection that holds against it need not hold against Stable Diffusion.
"""

from experiments.configs import common


def get_config(variant=None):
  """UDP and EUDP through an autoencoder; `variant` "smoke" takes seconds."""
  config = common.study("UDP and EUDP through the latent space of a small model")
  config = common.of_pictures(config, "tiny_ldm")
  config.radius_255, config.step_size_255 = 8.0, 2.0
  config.num_rounds = 6
  game = {"train_steps": 10, "perturb_steps": 2, "learning_rate": 1e-4}
  for row in ("udp", "eudp"):
    config.protections[row].update(game)
  config.evaluation.loss_images = 256
  return common.finish(config, variant)
