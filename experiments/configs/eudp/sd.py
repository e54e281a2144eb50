"""Pictures of any size against fine-tuning of Stable Diffusion 1.x or 2.x, at full resolution.

python -m experiments.eudp --config=sd --config.model.path=FOLDER --config.data.source=PICTURES \
  --workdir=runs/sd
FOLDER is in diffusers' layout, with safetensors. Hardware: a TPU or GPU of 16 GiB;
`python -m launch.aot --config=sd --num_images=64 --topology=v5e:4x4` says what fits.

Peak GiB of a perturb step by the compilers (launch/AOT.md), by pictures a device:
target     of GiB  remat      4      8
v5e:4x4        16     on   4.57   6.74
v6e:4x4        32     on   4.41      -
rtx4090        18     on   5.40      -
l40s           33     on   5.40      -
h100           59    off      -  11.55
a100           59    off      -  11.67
b200          134    off      -  20.46
The default, 4 with remat, fits 16 GiB. Where more fits, --config.performance.remat=False computes
nothing twice; a larger --config.global_batch_size (of all devices together) changes results.
"""

from experiments.configs import common


def get_config(variant=None):
  """LoRA as the surrogate's trained part; `variant` "smoke" takes seconds with a small model."""
  config = common.study("UDP and EUDP against fine-tuning of Stable Diffusion")
  config = common.of_pictures(config, "")
  config.radius_255, config.step_size_255 = 16.0, 1.0
  config.num_rounds = 20
  config.global_batch_size = 4
  game = {"train_steps": 20, "perturb_steps": 5, "learning_rate": 1e-4}
  for row in ("udp", "eudp"):
    config.protections[row].update(game | {"trains": "lora", "rank": 4})
  # Without a folder, `launch.aot` compiles version 1.4.
  config.model.architecture = "sd14"
  config.performance.update({"dtype": "bfloat16", "frozen_dtype": "bfloat16", "remat": True})
  # LoRA does not train the U-Net's own weights.
  config.performance.frozen_parts = ("unet", "vae", "text_encoder")
  return common.finish(config, variant)
