"""Building blocks of the configs that train a latent diffusion model from scratch."""

from __future__ import annotations

from ml_collections import ConfigDict


def training(title: str) -> ConfigDict:
  """A run of `experiments.train_ldm`, with every setting at its default."""
  config = ConfigDict()
  config.title = title
  config.seed = 0
  config.image_size = 64

  config.data = ConfigDict()
  # A source of labelled photographs (cifar10:PATH, npz:PATH, a folder of folders), and a folder of
  # paintings with a subfolder for each artist; "" leaves it out. If both are empty, the photographs
  # in scikit-image and scikit-learn are used.
  config.data.photos = ""
  config.data.photo_classes = ("automobile", "horse")
  config.data.photo_holdout = 0.2
  config.data.limit = 0
  config.data.paintings = ""
  config.data.held_out_artists = ("monet",)
  config.data.paintings_held = 2
  config.data.windows_per_painting = 200
  config.data.smallest_window = 112
  # Words for classes in captions, if the name of the class is not suitable.
  config.data.words = ConfigDict(
    {
      "automobile": "a car",
      "china": "a chinese temple",
      "coffee": "a cup of coffee",
      "hubble": "many galaxies",
      "immunohistochemistry": "a tissue section",
      "vangogh": "vincent van gogh",
    }
  )

  config.vae = ConfigDict(
    {
      "block_out_channels": (16, 32, 64),
      "layers_per_block": 1,
      "latent_channels": 4,
      "norm_num_groups": 8,
    }
  )
  config.unet = ConfigDict(
    {
      "block_out_channels": (32, 64, 80),
      "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
      "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
      "layers_per_block": 1,
      # diffusers' name for the number of heads.
      "attention_head_dim": 4,
      "norm_num_groups": 8,
    }
  )
  config.text_encoder = ConfigDict(
    {
      "hidden_size": 64,
      "intermediate_size": 192,
      "num_hidden_layers": 2,
      "num_attention_heads": 4,
    }
  )
  config.vocabulary_merges = 200
  config.schedule = ConfigDict(
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
  )

  config.autoencoder = ConfigDict(
    {
      "train_steps": 4500,
      "global_batch_size": 16,
      "learning_rate": 1.5e-3,
      "warmup_steps": 100,
      "ema_decay": 0.995,
      # Weights, relative to the L1 of pixels: of the L1 of neighbour differences, which penalises
      # blur, and of the KL divergence.
      "gradient_weight": 1.0,
      "kl_weight": 3e-4,
    }
  )
  config.denoiser = ConfigDict(
    {
      "train_steps": 8000,
      "global_batch_size": 32,
      "learning_rate": 1e-3,
      "warmup_steps": 200,
      "ema_decay": 0.999,
      # Share of captions that are dropped, for classifier-free guidance.
      "drop_captions": 0.1,
    }
  )
  config.samples = ConfigDict({"each": 4, "num_steps": 50, "guidance_scale": 3.0})
  config.checkpoint = ConfigDict({"every_steps": 250})
  config.performance = ConfigDict(
    {
      "dtype": "float32",
      # "" is the backend's default (`models.performance`).
      "precision": "",
      "conv_method": "",
      "attention": "",
      "remat": False,
      "steps_per_call": 25,
      "encode_batch_size": 64,
    }
  )
  return config


def finish(config: ConfigDict, variant: str | None) -> ConfigDict:
  """Applies the `:smoke` variant: runs every part in seconds; the model is of no use."""
  if variant == "smoke":
    config.image_size = 32
    config.data.update({"photos": "", "paintings": "", "limit": 24})
    config.vae.update({"block_out_channels": (8, 8), "norm_num_groups": 4})
    blocks = {"block_out_channels": (8,), "norm_num_groups": 4, "attention_head_dim": 2}
    blocks |= {"down_block_types": ("CrossAttnDownBlock2D",)}
    config.unet.update(blocks | {"up_block_types": ("CrossAttnUpBlock2D",)})
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    config.text_encoder.update(sizes | {"num_hidden_layers": 1})
    config.vocabulary_merges = 20
    for stage in (config.autoencoder, config.denoiser):
      stage.update({"train_steps": 4, "global_batch_size": 8, "warmup_steps": 2})
    config.samples.update({"each": 1, "num_steps": 2})
    config.checkpoint.every_steps = 2
    config.performance.update({"steps_per_call": 2, "encode_batch_size": 8})
  return config
