"""Evidence from models that learn to draw cars: 2,048 CIFAR-10 automobiles at 16x16, three seeds.

python -m experiments.eudp --config=cifar10_16px --config.data.source=cifar10:PATH \\
  --workdir=runs/16px
Hardware: 2 CPU cores, several hours; a killed run goes on. Expected numbers:
experiments/results/training_sets.md.
"""

from experiments.configs import common

# EUDP's distributions over timesteps, abar^a (1 - abar)^b; UDP is (0, 0), EUDP's default (2, 0).
POWERS = {
  "eudp_half": (0.5, 0.0),
  "eudp_1": (1.0, 0.0),
  "eudp_4": (4.0, 0.0),
  "eudp_half_half": (0.5, 0.5),
  "eudp_1_half": (1.0, 0.5),
}


def get_config(variant=None):
  """Cosine schedule (a linear one wastes steps on few pixels), longer training than at 32x32."""
  config = common.study("UDP, EUDP and their controls on CIFAR-10 automobiles at 16x16")
  for row, (a, b) in POWERS.items():
    config.protections[row] = common.GAME | {"method": "eudp", "a": a, "b": b}
  config.rows = ("clean", "random_noise", "sign_noise", "udp", "eudp", *POWERS)
  config.rows += ("udp_matched_noise", "eudp_matched_noise", "eudp_shuffled")
  config.data.source = "cifar10:cifar-10-binary.tar.gz"
  config.data.classes = ("automobile",)
  config.data.limit, config.data.holdout, config.data.image_size = 4096, 0.5, 16
  config.model.unet.update(common.DDPM_16PX)
  config.model.schedule = "cosine"
  config.num_rounds = 20
  config.num_samples = 1024
  config.threat.seeds = (0, 1, 2)
  config.threat.options.update(
    {"train_steps": 2000, "learning_rate": 2e-3, "sample_steps": 25, "warmup_steps": 100}
  )
  return common.finish(config, variant)
