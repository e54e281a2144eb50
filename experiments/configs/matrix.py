"""Building blocks of the configs of `experiments.impress`.

An entry of `protections`, `purifiers` or `threats` needs a `method` only if its name is not that of
a module; options that it does not set have the constructor's default. Fields ending in _255 are in
8-bit levels.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.configs.common import CHOICES

PACKAGED = "tiny_ldm"
# IMPRESS's runs against Glaze and PhotoGuard, on the paper's range [-1, 1].
IMPRESS_GLAZE = {
  "method": "impress",
  "num_steps": 3000,
  "learning_rate": 0.01,
  "perceptual_weight": 0.1,
  "perceptual_budget": 0.1,
  "noise_std": 0.1,
}
IMPRESS_PHOTOGUARD = IMPRESS_GLAZE | {
  "num_steps": 1000,
  "learning_rate": 0.005,
  "perceptual_weight": 0.01,
  "noise_std": 0.05,
}
# The class that Anti-DreamBooth's surrogates preserve.
PERSON = {
  "prior_weight": 1.0,
  "class_prompt": "a photo of a person",
  "num_class_images": 200,
  "sample_steps": 50,
}
# Metrics that need weights or draws, turned off; `udp_jax.metrics.given` documents them.
GIVEN = {
  "clip": "",
  "clip_template": "a painting by {}",
  "clip_top": 1,
  "face": "",
  "face_sha256": "",
  "classifier_draws": 0,
}
ADAPTIVE = {"transforms": "identity,jpeg,resize,blur,noise"}


def matrix(title: str, *, model: str = "") -> ConfigDict:
  """A matrix, with every setting at its default.

  Args:
    title: title of the report.
    model: folder of the model that is attacked and used, or "tiny_ldm".
  """
  config = ConfigDict()
  config.title = title
  config.notice = ""
  config.seed = 0
  # Entries of protections, purifiers and threats; "clean", "random_noise" and "none" are added.
  config.rows = ()
  config.use_purifiers = ()
  config.use_threats = ()
  # One run of each threat per seed.
  config.seeds = (0,)
  # Budget and step in 8-bit levels of the saved file, for all rows that set no smaller ones.
  config.radius_255 = 8.0
  config.step_size_255 = 1.0
  # How far flat areas are spared, in [0, 1]: see `ops.visibility`.
  config.spare_flat = 0.0
  config.num_rounds = 100
  config.global_batch_size = 8
  # Number of samples of each trained model.
  config.num_samples = 64
  # Prompt for each picture, in protections and threats; "{label}" is the name of its class.
  config.prompt = "a photo"
  config.negative_prompt = ""

  config.data = ConfigDict(
    {"source": "", "image_size": 0, "limit": 0, "holdout": 0.25, "classes": (), "strict": False}
  )
  # image_size: side in pixels; 0 for the model's own size.
  config.model = ConfigDict({"path": model, "image_size": 0} | CHOICES)

  config.protections = ConfigDict({"random_noise": {"distribution": "uniform"}})
  config.purifiers = ConfigDict()
  config.threats = ConfigDict()

  config.evaluation = ConfigDict(
    {
      # "" for none; then there is no style classifier, and trained models have only losses.
      "features": "efficientnet_lite0",
      "weights": "",
      "perceptual": "effnet_lite0_distance",
      "perceptual_weights": "",
      # (timestep, noise) pairs per picture, for denoising losses.
      "loss_draws": 32,
      "bootstrap": 1000,
    }
    | GIVEN
  )
  config.checkpoint = ConfigDict({"every_rounds": 50, "every_steps": 200})
  config.performance = ConfigDict(
    {
      "dtype": "float32",
      # "" is the backend's default (`models.performance`).
      "precision": "",
      # "" is float32; in the fields below, it is the backend's default.
      "frozen_dtype": "",
      "conv_method": "",
      "attention": "",
      "vae_attention": "",
      "vae_slices": 1,
      "remat": False,
      "fsdp": 1,
      "joint_gradients": False,
      "shard_batches": 0,
      "steps_per_call": 20,
      "sample_batch_size": 16,
    }
  )
  return config


def stable_diffusion(title: str) -> ConfigDict:
  """A matrix for a model of Stable Diffusion's size on an accelerator; a flag gives its folder."""
  config = matrix(title)
  config.global_batch_size = 4
  config.seeds = (0, 1)
  config.performance.update({"dtype": "bfloat16", "frozen_dtype": "bfloat16", "remat": True})
  config.performance.sample_batch_size = 4
  return config


def finish(config: ConfigDict, variant: str | None) -> ConfigDict:
  """Applies the `:smoke` variant: runs every part in seconds; the numbers mean nothing."""
  if variant == "smoke":
    config.notice = "A smoke run: it shows that every part works; the numbers mean nothing."
    config.model.update({"path": PACKAGED, "image_size": 0})
    config.data.update({"source": "builtin", "limit": 8, "holdout": 2.0, "classes": ()})
    config.num_rounds, config.num_samples, config.global_batch_size = 2, 4, 4
    config.seeds = (0,)
    config.evaluation.update({"loss_draws": 2, "bootstrap": 20})
    config.checkpoint.update({"every_rounds": 1, "every_steps": 1})
    config.performance.update({"dtype": "float32", "frozen_dtype": "", "remat": False})
    config.performance.update({"steps_per_call": 1, "sample_batch_size": 4})
    least = {
      "num_rounds": 2,
      "decay_steps": 2,
      "train_steps": 2,
      "perturb_steps": 1,
      "num_draws": 1,
      "num_steps": 2,
      "num_iterations": 1,
      "timestep": 2,
      "sample_steps": 4,
      "num_class_images": 4,
    }
    for entries in (config.protections, config.purifiers, config.threats):
      for options in entries.values():
        options.update({name: value for name, value in least.items() if name in options})
  return config
