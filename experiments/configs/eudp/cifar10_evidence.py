"""Evidence at full size: 35.7 M parameters, 5,000 CIFAR-10 automobiles and horses at 32x32.

python -m experiments.eudp --config=cifar10_evidence --config.data.source=cifar10:PATH \\
  --workdir=runs/evidence
Hardware: one large GPU, about 3.5 hours by estimate; or the same in pieces of nine minutes, which
may run on different machines: launch/gpu_evidence.sh. Expected numbers: none yet, as nobody has run
it.
"""

from experiments.configs import common


def get_config(variant=None):
  """Steps that end within nine minutes on an H100 by estimate; `variant` "smoke" takes seconds."""
  config = common.study("UDP, EUDP and their controls on CIFAR-10 against a DDPM of 35.7 M")
  config.rows = ("clean", "random_noise", "sign_noise", "udp", "eudp")
  config.rows += ("udp_matched_noise", "eudp_matched_noise")
  config.data.source = "cifar10:cifar-10-binary.tar.gz"
  config.data.classes, config.data.holdout = ("automobile", "horse"), 0.5
  config.model.unet = common.DDPM_CIFAR10
  config.global_batch_size, config.num_rounds, config.num_samples = 128, 60, 2048
  for row in ("udp", "eudp"):
    config.protections[row].learning_rate = 2e-4
  config.threat.seeds = (0, 1, 2)
  config.threat.options.update({"train_steps": 15_000, "learning_rate": 2e-4, "flip": True})
  config.threat.options.update({"warmup_steps": 500, "ema_decay": 0.999})
  config.performance.update({"dtype": "bfloat16", "steps_per_call": 250})
  # Pieces end where they start: a checkpoint in between would only take time.
  config.checkpoint.update({"every_rounds": 60, "every_steps": 15_000})
  return common.finish(config, variant)
