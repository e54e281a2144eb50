"""Names that reports and studies share."""

from __future__ import annotations

PICTURES, EDITS, SAMPLES = "pictures", "edits", "samples"
NONE = "none"
# Labels of purifiers, threats and protections whose names are not clear enough.
METHODS = {
  "advdm": "AdvDM",
  "aspl": "ASPL",
  "diffpure": "DiffPure",
  "dreambooth": "DreamBooth",
  "eudp": "EUDP",
  "ffdnet": "FFDNet",
  "freqpure": "FreqPure",
  "fsmg": "FSMG",
  "glaze": "Glaze",
  "gridpure": "GrIDPure",
  "impress": "IMPRESS",
  "jpeg": "JPEG",
  "lora": "LoRA",
  "mist": "Mist",
  "photoguard_diffusion": "PhotoGuard (diffusion)",
  "photoguard_encoder": "PhotoGuard (encoder)",
  "sds": "SDS",
  "sds_z": "SDS on latents",
  "udp": "UDP",
  "upscale": "RealESRGAN and back",
  "vae_roundtrip": "VAE round trip",
  "vae_trans": "VAE-Trans",
}


def method_label(name: str) -> str:
  """Returns a method's name in tables."""
  return METHODS.get(name, name.replace("_", " "))
