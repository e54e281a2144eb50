"""Protections made on one small model, held against another of another seed and width.

python -m experiments.impress --config=transfer --config.data.source=windows:PAINTINGS/monet \
  --config.model.path=runs/tiny_ldm_narrow/model --workdir=runs/transfer
Protects on tiny_ldm and attacks with config.model.path; the same without that field is the white
box. Hardware: 2 CPU cores, half an hour. Expected: experiments/results/transfer.md.
"""

from experiments.configs import matrix as m


def get_config(variant=None):
  """Five protections and noise, edits and a LoRA; `variant` "smoke" takes seconds."""
  config = m.matrix("Do protections transfer to a model of another seed and width?")
  config.model.path = config.protection_model.path = m.PACKAGED
  config.notice = "Two small models of our own: no statement about Stable Diffusion."
  config.data.update({"limit": 160, "holdout": 96.0})
  # Named in neither model's captions.
  config.prompt = "a painting by monet"
  config.num_rounds, config.global_batch_size, config.num_samples = 40, 32, 64
  config.seeds = (0, 1, 2)
  game = {"num_rounds": 10, "train_steps": 5, "perturb_steps": 3, "learning_rate": 1e-4}
  config.protections.advdm, config.protections.mist = {}, {}
  config.protections.photoguard_encoder = {"decay_steps": 40}
  config.protections.udp = game | {"start": "sign"}
  config.protections.eudp = game | {"start": "sign", "a": 1.0, "b": 0.5}
  config.protections.advdm_noise = {"method": "matched_noise", "of": "advdm"}
  config.rows = tuple(name for name in config.protections if name != "random_noise")
  config.threats.img2img = {"strength": 0.4, "sample_steps": 20, "guidance_scale": 3.0}
  config.threats.lora = {"train_steps": 200, "learning_rate": 2e-3, "rank": 8, "sample_steps": 20}
  config.use_threats = tuple(config.threats)
  return m.finish(config, variant)
