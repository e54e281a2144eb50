"""Fine-tunes the package's small model on an artist's pictures: clean, noisy, UDP and EUDP.

python -m experiments.impress --config=finetuning --config.data.source=folder:WINDOWS \
  --workdir=runs/finetuning
WINDOWS: pictures of 64x64 that the model has not seen. Hardware: 2 CPU cores. Time: about
three quarters of an hour. Numbers with two seeds: experiments/results/fine_tuning.md.
"""

from experiments.configs import matrix as m


def get_config(variant=None):
  """Two protections, the control and two ways to fine-tune; `variant` "smoke" takes seconds."""
  config = m.matrix("What fine-tuning learns from protected pictures", model=m.PACKAGED)
  config.notice = "A small latent diffusion model of our own: no statement about Stable Diffusion."
  config.data.update({"limit": 160, "holdout": 32.0})
  config.prompt = "a painting by monet"
  config.num_rounds, config.global_batch_size, config.num_samples = 12, 32, 64
  config.radius_255, config.step_size_255 = 16.0, 2.0
  config.seeds = (0, 1, 2)
  game: dict = {"num_rounds": 12, "train_steps": 20, "perturb_steps": 2, "learning_rate": 1e-4}
  game["start"] = "sign"
  config.protections.update({"udp": game, "eudp": game | {"a": 2.0}})
  config.rows = tuple(config.protections)
  fitting = {"train_steps": 300, "sample_steps": 25, "guidance_scale": 2.0}
  config.threats.lora = fitting | {"learning_rate": 2e-3, "rank": 8}
  config.threats.full = fitting | {"learning_rate": 3e-4}
  config.use_threats = tuple(config.threats)
  config.checkpoint.every_steps = 100
  return m.finish(config, variant)
