"""Names that reports and studies share."""

from __future__ import annotations

PICTURES, EDITS, SAMPLES = "pictures", "edits", "samples"
NONE = "none"
# Labels of purifiers, threats and protections whose names are not clear enough.
METHODS = {
  "ace": "ACE",
  "ace_plus": "ACE+",
  "advdm": "AdvDM",
  "aspl": "ASPL",
  "blurguard": "BlurGuard",
  "diffpure": "DiffPure",
  "diffusion_guard": "DiffusionGuard",
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
  "metacloak": "MetaCloak",
  "mist": "Mist",
  "photoguard_diffusion": "PhotoGuard (diffusion)",
  "photoguard_encoder": "PhotoGuard (encoder)",
  "pid": "PID",
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
