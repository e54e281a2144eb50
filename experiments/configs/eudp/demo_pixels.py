"""Crops of photographs from installed packages, four training sets, minutes on a CPU.

python -m experiments.eudp --config=demo_pixels --workdir=runs/demo_pixels
Hardware: 2 CPU cores. Time: under 8 minutes. A demonstration, not evidence: one seed, a small
model, short training.
"""

from experiments.configs import common


def get_config(variant=None):
  """A small pixel DDPM; `variant` "smoke" takes seconds."""
  config = common.study("EUDP on real photographs: a demonstration")
  config.notice = (
    "A demonstration, not evidence: a small model trained for a short time with one seed, on crops "
    "of nine photographs. experiments/results has the measured evidence and its limits."
  )
  config.data.source, config.data.limit, config.data.image_size = "builtin", 1024, 16
  config.model.unet.update(common.DDPM_16PX)
  config.num_rounds = 8
  config.num_samples = 256
  config.threat.options.update({"train_steps": 900, "sample_steps": 25})
  config.evaluation.loss_images = 256
  return common.finish(config, variant)
