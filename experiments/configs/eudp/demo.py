"""Photographs before and after, and what a model learns of them: a demonstration in minutes.

python -m experiments.eudp --config=demo --workdir=runs/demo
Hardware: 2 CPU cores. Time: 6 to 7 minutes. A demonstration, not evidence: one seed, three
photographs, a small model of our own. Expected: experiments/results/pictures.md. The cat is
protected at full resolution; the model learns copies of its own size, each protected as it is,
because shrinking averages a protection away.
"""

from experiments.configs import common


def get_config(variant=None):
  """UDP, EUDP and noise of EUDP's values against tiny_ldm; `variant` "smoke" takes seconds."""
  config = common.study("Photographs before and after, and what a model learns of them")
  config = common.of_pictures(config, "tiny_ldm")
  config.notice = (
    "A demonstration, not evidence: three photographs, one seed, a small model made for this "
    "package, no purifier. Shrinking protected pictures undoes it. Nothing follows for Stable "
    "Diffusion; experiments/results has evidence."
  )
  config.rows = ("clean", "eudp_matched_noise", "udp", "eudp")
  config.pictures.photographs = ("cat", "cat@64", "coffee@64", "rocket@64")
  # Windows of the model's own size, which it learns by heart: nothing is shrunk again.
  config.pictures.update({"windows": 96, "smallest_window": 64, "learn_up_to": 64})
  config.num_rounds, config.num_samples, config.global_batch_size = 8, 18, 18
  game = {"train_steps": 10, "perturb_steps": 3, "learning_rate": 1e-4, "start": "sign"}
  for row in ("udp", "eudp"):
    config.protections[row].update(game)
  config.threat.name = "full"
  config.threat.options = {"train_steps": 150, "learning_rate": 3e-4, "sample_steps": 25}
  config.threat.options.guidance_scale = 2.0
  config.evaluation.loss_images = 96
  config.performance.sample_batch_size = 18
  return common.finish(config, variant)
