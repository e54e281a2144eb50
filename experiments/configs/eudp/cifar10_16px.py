"""Evidence from models that learn to draw cars: 2,048 CIFAR-10 automobiles at 16x16, two seeds.

python -m experiments.eudp --config=cifar10_16px --config.data.source=cifar10:PATH \\
  --workdir=runs/16px
Hardware: about an hour and a half of one CPU core. Expected numbers:
experiments/results/training_sets.md.
"""

from experiments.configs import common


def get_config(variant=None):
  """Cosine schedule (a linear one wastes steps on few pixels), longer training than at 32x32."""
  config = common.study("UDP, EUDP and their controls on CIFAR-10 automobiles at 16x16")
  config.rows = ("clean", "random_noise", "sign_noise", "udp", "eudp")
  config.rows += ("udp_matched_noise", "eudp_matched_noise", "eudp_shuffled")
  config.data.source = "cifar10:cifar-10-binary.tar.gz"
  config.data.classes = ("automobile",)
  config.data.limit, config.data.holdout, config.data.image_size = 4096, 0.5, 16
  config.model.unet.update(common.DDPM_16PX)
  config.model.schedule = "cosine"
  config.num_rounds = 20
  config.num_samples = 2048
  config.threat.seeds = (0, 1)
  config.threat.options.update(
    {"train_steps": 3000, "learning_rate": 2e-3, "sample_steps": 25, "warmup_steps": 100}
  )
  return common.finish(config, variant)
