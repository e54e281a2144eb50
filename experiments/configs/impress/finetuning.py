"""Fine-tunes the package's small model on an artist it does not know: UDP, EUDP and their noise.

python -m experiments.impress --config=finetuning --config.data.source=windows:PAINTINGS/monet \
  --workdir=runs/finetuning
PAINTINGS/monet: five pictures of 512x512. Hardware: 2 CPU cores. Time: about two hours; a killed
run goes on. Expected: experiments/results/fine_tuning.md.
"""

from experiments.configs import matrix as m

# EUDP's distributions over timesteps, abar^a (1 - abar)^b; UDP is (0, 0).
EUDP: dict = {"eudp": {"a": 2.0, "b": 0.0}, "eudp_half_half": {"a": 0.5, "b": 0.5}}
EUDP |= {"eudp_1_half": {"a": 1.0, "b": 0.5}, "eudp_measured": {"probs": "measured"}}


def get_config(variant=None):
  """Five distributions over timesteps, their noise, two threats; `variant` "smoke" for seconds."""
  config = m.matrix("What fine-tuning learns from protected pictures", model=m.PACKAGED)
  config.notice = "A small latent diffusion model of our own: no statement about Stable Diffusion."
  # Of five paintings, one is held out whole.
  config.data.update({"limit": 160, "holdout": 32.0})
  config.prompt = "a painting by monet"
  config.num_rounds, config.global_batch_size, config.num_samples = 12, 32, 64
  config.radius_255, config.step_size_255 = 16.0, 2.0
  config.seeds = (0, 1, 2)
  game: dict = {"num_rounds": 12, "train_steps": 20, "perturb_steps": 2, "learning_rate": 1e-4}
  game |= {"start": "sign"}
  config.protections.udp = game
  for row, distribution in EUDP.items():
    config.protections[row] = game | {"method": "eudp"} | distribution
  config.model.timestep_probs = m.PACKAGED  # Measured by `experiments.timesteps`.
  for row in ("udp", "eudp"):
    config.protections[f"{row}_noise"] = {"method": "matched_noise", "of": row}
  config.rows = tuple(name for name in config.protections if name != "random_noise")
  fitting = {"train_steps": 300, "sample_steps": 25, "guidance_scale": 2.0}
  config.threats.lora = fitting | {"learning_rate": 2e-3, "rank": 8}
  config.threats.full = fitting | {"learning_rate": 3e-4}
  config.use_threats = tuple(config.threats)
  config.checkpoint.every_steps = 100
  return m.finish(config, variant)
