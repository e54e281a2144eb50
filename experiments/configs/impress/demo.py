"""Photographs from installed packages and the small model of the package; minutes on a CPU.

python -m experiments.impress --config=demo --workdir=runs/impress
Hardware: 2 CPU cores. Time: 14 minutes. A demonstration, not evidence: few pictures, one seed, a
small model of our own. A protection that holds against it need not hold against Stable Diffusion.
"""

from experiments.configs import matrix as m


def get_config(variant=None):
  """Seven protections, five purifiers, two threats; `variant` "smoke" takes seconds."""
  config = m.matrix("Which protection survives purification? A demonstration", model=m.PACKAGED)
  config.notice = (
    "A demonstration, not evidence: few pictures, a small latent diffusion model of our own, and "
    "one seed, too few to claim anything of LoRA. Nothing here is about Stable Diffusion."
  )
  config.data.update({"source": "builtin", "limit": 28, "holdout": 8.0})
  # 20 pictures to protect, 8 held out.
  config.num_rounds, config.global_batch_size, config.num_samples = 40, 10, 16
  config.evaluation.loss_draws = 16
  encoder, mist = {"method": "photoguard_encoder", "decay_steps": 40}, {"method": "mist"}
  # Noise at full strength, which no method exceeds, and Mist's own values in random order.
  rows: dict = {"random_noise": {"distribution": "sign"}}
  rows |= {"mist_noise": {"method": "matched_noise", "of": "mist"}}
  rows |= {"photoguard_encoder": encoder, "photoguard_adaptive": encoder | m.ADAPTIVE}
  rows |= {"mist": mist, "mist_adaptive": mist | m.ADAPTIVE, "advdm": {}, "glaze": m.OFFLINE}
  game = {"num_rounds": 10, "train_steps": 5, "perturb_steps": 3, "learning_rate": 1e-4}
  config.protections.update(rows | {"eudp": game | {"start": "sign"}})
  config.rows = (*rows, "eudp")
  config.purifiers.jpeg = {"quality": 75}
  config.purifiers.gaussian_blur = {"sigma": 1.0}
  config.purifiers.gaussian_noise = {"std": 0.05}
  config.purifiers.vae_roundtrip = {}
  config.purifiers.impress = m.IMPRESS_DEMO
  config.use_purifiers = ("jpeg", "gaussian_blur", "gaussian_noise", "vae_roundtrip", "impress")
  config.threats.img2img = {"strength": 0.4, "sample_steps": 20, "guidance_scale": 3.0}
  config.threats.lora = {"train_steps": 60, "learning_rate": 2e-3, "sample_steps": 20}
  config.use_threats = tuple(config.threats)
  return m.finish(config, variant)
