"""CIFAR-10 at full size against the 35.7 M DDPM of Ho et al., for an accelerator.

python -m experiments.eudp --config=cifar10 --config.data.source=cifar10:PATH --workdir=runs/cifar10
PATH: cifar-10-binary.tar.gz or its extracted folder. Hardware: a TPU slice or a large GPU; days for
all rows on one device. Expected numbers: none yet, as nobody has run it to the end. The model and
its training are Ho et al.'s; the game is ours, as only the abstract of UDP's paper was at hand.
"""

from experiments.configs import common


def get_config(variant=None):
  """CIFAR-10 at full size; `variant` "smoke" takes seconds."""
  config = common.study("UDP and EUDP on CIFAR-10 against a DDPM")
  config.data.source = "cifar10:cifar-10-binary.tar.gz"
  config.data.holdout = 0.1
  config.model.unet = common.DDPM_CIFAR10
  config.global_batch_size = 128
  # As many as are held out: distances depend on counts.
  config.num_samples = 5000
  config.num_rounds = 200
  for row in ("udp", "eudp"):
    config.protections[row].update({"train_steps": 500, "perturb_steps": 2, "learning_rate": 2e-4})
  config.threat.options.update(
    {"train_steps": 800_000, "learning_rate": 2e-4, "warmup_steps": 5000, "decay": "constant"}
  )
  config.threat.options.update({"ema_decay": 0.9999, "flip": True, "sample_steps": 100})
  config.performance.dtype = "bfloat16"
  config.performance.steps_per_call = 500
  config.checkpoint.update({"every_rounds": 10, "every_steps": 10_000})
  return common.finish(config, variant)
