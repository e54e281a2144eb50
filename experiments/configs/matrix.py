"""Building blocks of the configs of `experiments.impress`.

An entry of `protections`, `purifiers` or `threats` needs a `method` only if its name is not that of
a module; options that it does not set have the constructor's default. Fields ending in _255 are in
8-bit levels.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from udp_jax.studies.configs.common import BAND, CHOICES

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
# LPIPS would take longer than all else in the demo: its methods have the offline distance, and the
# budgets are converted. The report measures by LPIPS where it is installed.
OFFLINE = {"perceptual": "effnet_lite0_distance"}
IMPRESS_DEMO = IMPRESS_PHOTOGUARD | OFFLINE | {"num_steps": 60, "learning_rate": 0.02}
# What Anti-DreamBooth's surrogates train, by which steps, and the class that they preserve. They
# train on pictures apart from the protected ones, so `data.clean_set` must be given.
ANTI_DREAMBOOTH = {
  "needs_clean_set": True,
  "trains": "denoiser_and_text",
  "step_size_255": 0.6375,
  "learning_rate": 5e-7,
  "prior_weight": 1.0,
  "class_prompt": "a photo of person",
  "num_class_images": 200,
  "sample_steps": 50,
}
FSMG = ANTI_DREAMBOOTH | {"train_steps": 1000, "num_rounds": 101}
ASPL = ANTI_DREAMBOOTH | {"num_rounds": 50, "clip_norm": 0.0}
# Methods of which each is told by its own paper's settings: `udp_jax.published`.
ACE = {"num_rounds": 5, "step_size_255": 0.6375, "trains": "lora", "rank": 4}
METACLOAK = {name: value for name, value in ANTI_DREAMBOOTH.items() if name != "needs_clean_set"}
METACLOAK |= {"num_rounds": 2900, "warmup_rounds": 500, "restart_every": 100, "step_size_255": 1.1}
PEERS = {
  "pid": {"num_rounds": 1000},
  "ace": ACE,
  "ace_plus": ACE,
  "metacloak": METACLOAK,
  "diffusion_guard": {"num_rounds": 800, "step_size_255": 0.5, "start": "zero"},
  "blurguard": {"num_rounds": 100, "step_size_255": 0.193, "sigma_steps": 50},
}
# Glaze of IMPRESS's scripts.
STYLE = {"target": "style_transfer", "style_prompt": "Cubism by Picasso", "sample_steps": 50}
GLAZE = STYLE | {"perceptual_budget": 0.05}
# PhotoGuard's encoder attack on img2img, and its diffusion attack in an L-inf ball.
PHOTOGUARD_ENCODER = {"num_rounds": 1000, "step_size_255": 2.55, "decay_steps": 1000}
PHOTOGUARD_LINF = {"num_rounds": 200, "step_size_255": 0.765, "num_draws": 5}
# Metrics that need weights or draws, turned off; `udp_jax.metrics.given` documents them.
GIVEN = {
  "clip": "",
  "clip_template": "a painting by {}",
  "clip_top": 1,
  "face": "",
  "face_sha256": "",
  "classifier_draws": 0,
}
# Methods whose steps average one (timestep, noise) draw, unless `num_draws` says more.
ONE_DRAW = ("udp", "eudp", "advdm", "mist", "sds")
# Methods whose delta may be kept to a band of frequencies.
BANDED: tuple[str, ...] = (
  *ONE_DRAW,
  "aspl",
  "fsmg",
  "glaze",
  "photoguard_diffusion",
  "photoguard_encoder",
)
BANDED += ("random_noise", "pid", "ace", "ace_plus", "diffusion_guard", "metacloak")
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
  # Further pictures of the subject, which FSMG and ASPL train on; "" is the protected ones, clean.
  config.data.clean_set = ""
  # image_size: side in pixels; 0 for the model's own size.
  # timestep_probs: what `experiments.timesteps` measured, for rows with probs="measured".
  config.model = ConfigDict({"path": model, "image_size": 0, "timestep_probs": ""} | CHOICES)
  # The model that protections are made on, if it is not the one that is edited and fine-tuned.
  config.protection_model = ConfigDict({"path": ""})
  # The prior of DiffPure, FreqPure and GrIDPure; "" for the attacked model.
  config.purifier_model = ConfigDict({"path": ""})

  config.protections = ConfigDict({"random_noise": {"distribution": "uniform"}})
  config.purifiers = ConfigDict()
  config.threats = ConfigDict()

  config.evaluation = ConfigDict(
    {
      # "" for none; then there is no style classifier, and trained models have only losses.
      "features": "efficientnet_lite0",
      "weights": "",
      # "auto": LPIPS (VGG16) where it is installed, else the offline distance; records say which.
      "perceptual": "auto",
      "perceptual_weights": "",
      # (timestep, noise) pairs per picture, for denoising losses.
      "loss_draws": 32,
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
  config.seeds = (0, 1, 2)
  config.performance.update({"dtype": "bfloat16", "frozen_dtype": "bfloat16", "remat": True})
  config.performance.sample_batch_size = 4
  return config


def finish(config: ConfigDict, variant: str | None) -> ConfigDict:
  """Applies the `:smoke` variant: runs every part in seconds; the numbers mean nothing.

  Gives rows the fields `num_draws`, `band` and `band_sigma`, so that flags can set them.
  """
  for name, options in config.protections.items():
    if options.get("method", name) in ONE_DRAW and "num_draws" not in options:
      options.num_draws = 1
    if options.get("method", name) in BANDED:
      options.update({field: value for field, value in BAND.items() if field not in options})
  if variant == "smoke":
    config.notice = "A smoke run: it shows that every part works; the numbers mean nothing."
    config.model.update({"path": PACKAGED, "image_size": 0})
    config.protection_model.path = ""
    config.data.update({"source": "builtin", "limit": 8, "holdout": 2.0, "classes": ()})
    config.num_rounds, config.num_samples, config.global_batch_size = 2, 4, 4
    config.seeds = (0,)
    config.evaluation.update({"loss_draws": 2} | OFFLINE)
    config.checkpoint.update({"every_rounds": 1, "every_steps": 1})
    config.performance.update({"dtype": "float32", "frozen_dtype": "", "remat": False})
    config.performance.update({"steps_per_call": 1, "sample_batch_size": 4})
    least = {
      "num_rounds": 2,
      "decay_steps": 2,
      "train_steps": 2,
      "perturb_steps": 1,
      "warmup_rounds": 1,
      "restart_every": 1,
      "sigma_steps": 2,
      "num_draws": 1,
      "num_steps": 2,
      "num_iterations": 1,
      "timestep": 2,
      "sample_steps": 4,
      "num_class_images": 4,
      "needs_clean_set": False,
    }
    for entries in (config.protections, config.purifiers, config.threats):
      for entry, options in entries.items():
        if options.get("method", entry) in ("glaze", "impress"):
          options.update(OFFLINE)
        options.update({name: value for name, value in least.items() if name in options})
  return config
