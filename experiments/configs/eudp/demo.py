"""Real photographs protected at full resolution, and what a model learns of them, shrunk.

python -m experiments.eudp --config=demo --workdir=runs/demo
Hardware: 2 CPU cores. Time: about 10 minutes. A demonstration, not evidence: one seed, three
photographs, a small model of our own. Expected: experiments/results/pictures.md. Shrinking to a
quarter averages a protection made at full resolution away: all rows draw the same.
"""

from experiments.configs import common


def get_config(variant=None):
  """UDP, EUDP and noise of full strength against tiny_ldm; `variant` "smoke" takes seconds."""
  config = common.study("What a model learns from protected photographs: a demonstration")
  config = common.of_pictures(config, "tiny_ldm")
  config.notice = (
    "A demonstration, not evidence: three photographs, one seed, and a small model made for this "
    "package. It says nothing about Stable Diffusion. experiments/results has evidence."
  )
  config.rows = ("clean", "sign_noise", "udp", "eudp")
  config.pictures.photographs = ("cat", "coffee", "rocket")
  # Nearly whole photographs, which a model learns by heart.
  config.pictures.update({"windows": 96, "smallest_window": 250})
  config.num_rounds, config.num_samples = 6, 16
  game = {"train_steps": 10, "perturb_steps": 2, "learning_rate": 1e-4, "start": "sign"}
  for row in ("udp", "eudp"):
    config.protections[row].update(game)
  config.threat.name = "full"
  config.threat.options = {"train_steps": 200, "learning_rate": 3e-4, "sample_steps": 25}
  config.threat.options.guidance_scale = 2.0
  config.evaluation.loss_images = 128
  config.performance.sample_batch_size = 16
  return common.finish(config, variant)
