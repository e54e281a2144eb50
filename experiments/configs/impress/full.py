"""All combinations: every protection, purifier and threat for Stable Diffusion.

python -m experiments.impress --config=full --config.model.path=FOLDER \\
  --config.data.source=folder:PICTURES --workdir=runs/full
FOLDER: Stable Diffusion in diffusers' layout. Days of one accelerator: choose parts by --rows,
--purifiers and --threats, in the same workdir; finished parts are not made again. FSMG and ASPL
need --config.data.clean_set=FOLDER, further pictures of the subject that are not protected.
"""

from experiments.configs import matrix as m

SIGN = ("advdm", "mist", "sds", "photoguard_encoder")


def get_config(variant=None):
  """Published settings (`udp_jax.published`) at one budget, 8 levels; "smoke" takes minutes."""
  config = m.stable_diffusion("Protections, purifiers and threats")
  for name in SIGN:
    own = m.PHOTOGUARD_ENCODER if name == "photoguard_encoder" else {}
    config.protections[name] = own
    config.protections[f"{name}_adaptive"] = own | m.ADAPTIVE | {"method": name}
  config.protections.photoguard_diffusion = m.PHOTOGUARD_LINF
  config.protections.glaze = m.GLAZE | {"num_rounds": 500, "step_size_255": 1.275}
  game = {"num_rounds": 50, "train_steps": 20, "perturb_steps": 5, "trains": "lora", "rank": 4}
  game |= {"start": "sign", "learning_rate": 8e-4}
  config.protections.update({"udp": game, "eudp": game, "fsmg": m.FSMG, "aspl": m.ASPL} | m.PEERS)
  config.rows = tuple(config.protections)
  config.purifiers.update({"jpeg": {"quality": 75}, "gaussian_noise": {"std": 0.05}})
  config.purifiers.update({"gaussian_blur": {"sigma": 1.0}, "resize": {}, "total_variation": {}})
  config.purifiers.update(adverse_cleaner={}, vae_roundtrip={}, impress=m.IMPRESS_PHOTOGUARD)
  config.purifiers.update({"diffpure": {"timestep": 100}, "gridpure": {"num_iterations": 20}})
  config.use_purifiers = tuple(config.purifiers)
  config.threats.img2img = {"strength": 0.5, "sample_steps": 50}
  config.threats.inpaint = {"strength": 1.0, "sample_steps": 50, "mask": "surroundings"}
  config.threats.lora = {"train_steps": 500, "sample_steps": 50}
  instance = {"prompt": "a photo of sks", "class_prompt": "a photo", "num_class_images": 200}
  config.threats.dreambooth = instance | {"train_steps": 800, "batch_size": 2}
  config.threats.textual_inversion = {"train_steps": 3000, "init_word": "photo", "num_vectors": 1}
  config.use_threats = tuple(config.threats)
  return m.finish(config, variant)
