"""Building blocks of configs. Fields that change only speed are under `performance`."""

from __future__ import annotations

from ml_collections import ConfigDict

# Ho et al. 2020, appendix B: 35.7 M parameters at 32x32.
DDPM_CIFAR10 = {
  "sample_size": 32,
  "block_out_channels": (128, 256, 256, 256),
  "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
  "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
  "layers_per_block": 2,
  "norm_num_groups": 32,
  "dropout": 0.1,
}
# The same architecture at a size for two CPU cores: 0.7 M parameters.
DDPM_SMALL = {
  "sample_size": 32,
  "block_out_channels": (16, 32, 64),
  "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
  "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
  "layers_per_block": 1,
  "norm_num_groups": 8,
}
# Half the size in every dimension, to compare settings at 16x16: 0.2 M parameters.
DDPM_16PX = {
  "sample_size": 16,
  "block_out_channels": (16, 32),
  "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
  "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
  "layers_per_block": 1,
  "norm_num_groups": 8,
}
# The smallest model of the architecture, for smoke runs, which spend their time on compilation.
TINY = {
  "sample_size": 16,
  "block_out_channels": (8,),
  "down_block_types": ("DownBlock2D",),
  "up_block_types": ("UpBlock2D",),
  "layers_per_block": 1,
  "norm_num_groups": 4,
  "dropout": 0.0,
}
# A round of the max-min game; experiments/results/game_settings.md says why.
GAME = {"train_steps": 60, "perturb_steps": 4, "start": "zero", "learning_rate": 1e-3}
# The band of delta, "" for all frequencies, and its standard deviation in pixels of the model's
# picture (`udp_jax.protections.options.Spectrum`).
BAND = {"band": "", "band_sigma": 3.0}
GAME |= {"num_draws": 1} | BAND
ROWS = ("clean", "random_noise", "udp", "eudp")


# What is taken in place of a latent model's own: `udp_jax.models.pipeline.Choices`.
CHOICES = {"vae": "", "tokenizer": "", "prediction_type": ""}


def study(title: str) -> ConfigDict:
  """A study of training sets, with every setting at its default."""
  config = ConfigDict()
  config.title = title
  config.notice = ""
  config.seed = 0
  config.rows = ROWS
  # Budget and step in 8-bit levels of the saved file.
  config.radius_255 = 16.0
  config.step_size_255 = 2.0
  # How far flat areas are spared, in [0, 1]: see `ops.visibility`.
  config.spare_flat = 0.0
  config.num_rounds = 20
  config.global_batch_size = 32
  config.num_samples = 1024

  config.data = ConfigDict()
  config.data.source = "builtin"
  config.data.image_size = 32
  config.data.limit = 0
  # A fraction, or 1 and more for a number of pictures.
  config.data.holdout = 0.25
  config.data.classes = ()
  config.data.strict = False
  # Further pictures of the subject, which FSMG and ASPL train on; "" is the protected ones, clean.
  config.data.clean_set = ""

  config.model = ConfigDict()
  config.model.path = ""
  # What `experiments.timesteps` measured on this model, for rows with probs="measured".
  config.model.timestep_probs = ""
  config.model.unet = ConfigDict(DDPM_SMALL)
  config.model.schedule = "linear"
  config.model.num_train_timesteps = 1000

  config.protections = ConfigDict()
  config.protections.random_noise = ConfigDict({"distribution": "uniform"})
  config.protections.sign_noise = ConfigDict({"method": "random_noise", "distribution": "sign"})
  config.protections.udp = ConfigDict(GAME)
  config.protections.eudp = ConfigDict(GAME | {"a": 2.0, "b": 0.0})
  config.protections.advdm = ConfigDict({"num_rounds": 100, "num_draws": 1} | BAND)
  for method in ("udp", "eudp"):
    config.protections[f"{method}_matched_noise"] = ConfigDict(
      {"method": "matched_noise", "of": method}
    )
    config.protections[f"{method}_shuffled"] = ConfigDict(
      {"method": "shuffled_delta", "of": method}
    )

  config.threat = ConfigDict()
  config.threat.name = "scratch"
  config.threat.seeds = (0,)
  config.threat.options = ConfigDict(
    {
      "train_steps": 1000,
      "learning_rate": 1e-3,
      "warmup_steps": 50,
      "decay": "cosine",
      "clip_norm": 1.0,
      "ema_decay": 0.995,
      "flip": False,
      "sample_steps": 50,
      "eta": 0.0,
    }
  )

  config.evaluation = ConfigDict()
  config.evaluation.features = "efficientnet_lite0"
  config.evaluation.weights = ""
  config.evaluation.loss_images = 512

  config.checkpoint = ConfigDict({"every_rounds": 5, "every_steps": 500})
  config.performance = ConfigDict(
    {
      "dtype": "float32",
      # "" uses the backend's default; values of `precision`: `models.performance`.
      "precision": "",
      "backend": "",
      "conv_method": "",
      "attention": "",
      "remat": False,
      # Devices that share one copy of the weights; the data axis uses the other devices.
      "fsdp": 1,
      # One backward pass for both sides of the game: half the cost, but another algorithm.
      "joint_gradients": False,
      # Batches on the device at a time, for data larger than its memory; 0 for all.
      "shard_batches": 0,
      "steps_per_call": 50,
      "sample_batch_size": 256,
    }
  )
  return config


def of_pictures(config: ConfigDict, model: str) -> ConfigDict:
  """Turns a study of training sets into one of pictures of any size against a latent model."""
  config.rows = ("clean", "random_noise", "udp", "eudp")
  config.data.update({"source": "builtin", "image_size": 0, "holdout": 0.0})
  # Caption for pictures without one in their folder (`udp_jax.data.captions`).
  config.data.prompt = ""
  config.model.update({"path": model, **CHOICES})
  # Side of a tile in pixels; 0 for the model's own size.
  config.model.image_size = 0
  # overlap: pixels, -1 for an eighth of a tile. files_at_a_time: 0 for the method's default.
  config.pictures = ConfigDict({"tile_size": 0, "overlap": -1, "files_at_a_time": 0})
  # What a model learns from, where `config.threat` names a way to fine-tune ("scratch": nothing):
  # windows of all pictures together, and their shortest side in pixels.
  # Larger pictures, by their shorter side, are not learned from; 0 learns from all.
  config.pictures.update({"windows": 240, "smallest_window": 112, "learn_up_to": 0})
  # Names of the photographs, if the source is "builtin"; "cat@64" has a shorter side of 64 pixels.
  config.pictures.photographs = ("cat", "coffee", "rocket")
  # Further settings of latent models that change speed and memory: `models.performance`.
  config.performance.update({"frozen_dtype": "", "vae_attention": "", "vae_slices": 1})
  config.performance.frozen_parts = ("vae", "text_encoder")
  for row in ("udp", "eudp"):
    config.protections[row].update({"trains": "denoiser", "rank": 4})
  return config


def finish(config: ConfigDict, variant: str | None) -> ConfigDict:
  """Applies the `:smoke` variant: runs every part in seconds; the numbers mean nothing."""
  if variant == "smoke":
    config.notice = "A smoke run: it shows that every part works; the numbers mean nothing."
    # Built-in pictures need no other files; a source on the command line replaces them.
    config.data.update({"source": "builtin", "classes": (), "limit": 24, "holdout": 8.0})
    config.data.image_size = 16
    config.model.unet.update(TINY)
    config.num_rounds = 6
    config.global_batch_size = 8
    config.num_samples = 8
    for options in config.protections.values():
      if "train_steps" in options:
        options.update({"train_steps": 3, "perturb_steps": 1})
    config.protections.advdm.num_rounds = 6
    config.threat.seeds = (0,)
    config.threat.options.update({"train_steps": 6, "warmup_steps": 2, "sample_steps": 3})
    config.evaluation.loss_images = 8
    config.checkpoint.update({"every_rounds": 3, "every_steps": 4})
    config.performance.update({"steps_per_call": 2, "sample_batch_size": 8})
    if "pictures" in config:
      config.model.path = "tiny_ldm"
      config.data.update({"image_size": 0, "limit": 0, "holdout": 0.0})
      config.pictures.photographs = ("cat@96", "cat@64")
      config.num_rounds = 2
  return config


def without_eudp(config: ConfigDict) -> ConfigDict:
  """Returns the study without the rows of EUDP."""
  config.rows = tuple(row for row in config.rows if "eudp" not in row)
  config.title = config.title.replace("UDP, EUDP", "UDP").replace("UDP and EUDP", "UDP")
  config.title = config.title.replace("EUDP", "UDP")
  return config
