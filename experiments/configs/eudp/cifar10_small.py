"""The evidence setting: 2,048 pictures of one CIFAR-10 class at 32x32, hours on 2 CPU cores.

python -m experiments.eudp --config=cifar10_small --config.data.source=cifar10:PATH \\
  --workdir=runs/small
Numbers with two seeds: experiments/results/training_sets.md.
"""

from experiments.configs import common


def get_config(variant=None):
  """Small models, all controls, three seeds; `variant` "smoke" takes seconds."""
  config = common.study("UDP, EUDP and their controls on CIFAR-10 automobiles")
  config.rows = ("clean", "random_noise", "sign_noise", "udp", "eudp")
  config.rows += ("udp_matched_noise", "eudp_matched_noise", "eudp_shuffled")
  config.data.source = "cifar10:cifar-10-binary.tar.gz"
  config.data.classes = ("automobile",)
  config.data.limit = 4096
  config.data.holdout = 0.5
  config.num_rounds = 10
  config.threat.seeds = (0, 1, 2)
  config.threat.options.update({"train_steps": 800, "sample_steps": 25})
  return common.finish(config, variant)
