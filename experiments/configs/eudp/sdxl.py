"""Pictures of any size against fine-tuning of Stable Diffusion XL, at 1024 pixels.

python -m experiments.eudp --config=sdxl --config.model.path=FOLDER --config.data.source=PICTURES \
  --workdir=runs/sdxl
FOLDER is in diffusers' layout, with safetensors. `python -m launch.aot --config=sdxl
--num_images=64 --topology=v5p:2x2x1` says what fits a chip.

The U-Net is told of each tile that it is a whole picture of the tile's size: original and target
size are 1024x1024 and the crop is at (0, 0).
"""

from experiments.configs import common


def get_config(variant=None):
  """LoRA as the surrogate's trained part; `variant` "smoke" takes seconds with a small model."""
  config = common.study("UDP and EUDP against fine-tuning of Stable Diffusion XL")
  config = common.of_pictures(config, "")
  config.radius_255, config.step_size_255 = 16.0, 1.0
  config.num_rounds = 20
  config.global_batch_size = 1
  game = {"train_steps": 20, "perturb_steps": 5, "learning_rate": 1e-4}
  for row in ("udp", "eudp"):
    config.protections[row].update(game | {"trains": "lora", "rank": 4})
  # Without a folder, `launch.aot` compiles version 1.0.
  config.model.architecture = "sdxl"
  config.performance.update({"dtype": "bfloat16", "frozen_dtype": "bfloat16", "remat": True})
  # LoRA does not train the U-Net's own weights.
  config.performance.frozen_parts = ("unet", "vae", "text_encoder")
  # "float32" computes the VAE as diffusers' training scripts of XL do (`models.performance`).
  config.performance.vae_dtype = ""
  return common.finish(config, variant)
