"""Finds what causes the effect: variants of the game on 512 pictures at 16x16, minutes per row.

python -m experiments.eudp --config=ablation --config.data.source=cifar10:PATH --workdir=runs/ab
Hardware: 2 CPU cores, about 2 minutes per row and core. Expected:
experiments/results/game_settings.md.
"""

from experiments.configs import common

VARIANTS: dict[str, dict[str, float | str | bool]] = {
  "udp_2_steps": {"a": 0.0},
  "eudp_2_steps": {},
  "start_zero": {"start": "zero"},
  "start_uniform": {"start": "uniform"},
  "perturb_5": {"perturb_steps": 5},
  "train_100": {"train_steps": 100},
  "restart_4": {"restart_every": 4},
  "snr": {"b": -0.5},
  "a_2": {"a": 2.0},
  "joint": {"joint_gradients": True},
  "budget_8": {"radius_255": 8.0, "step_size_255": 1.0},
}


def get_config(variant=None):
  """One seed, a very small model, one change per row; `variant` "smoke" takes seconds."""
  config = common.study("Variants of EUDP on CIFAR-10 automobiles at 16x16")
  config.notice = "One seed and a very small model: a guide to settings, no evidence of protection."
  config.data.source, config.data.classes = "cifar10:cifar-10-binary.tar.gz", ("automobile",)
  config.data.limit, config.data.holdout, config.data.image_size = 1024, 0.5, 16
  config.model.unet.update(common.DDPM_16PX)
  config.num_rounds = 16
  config.threat.options.update({"train_steps": 800, "sample_steps": 50})
  base: dict = {"method": "eudp", "a": 0.5, "b": 0.0, "learning_rate": 8e-4}
  base |= {"train_steps": 30, "perturb_steps": 2, "start": "sign"}
  for row, changes in VARIANTS.items():
    config.protections[row] = base | changes
  config.rows = ("clean", "sign_noise", *VARIANTS)
  return common.finish(config, variant)
