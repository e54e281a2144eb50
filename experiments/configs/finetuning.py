"""Building blocks of the configs that fine-tune a text-to-image model."""

from __future__ import annotations

from ml_collections import ConfigDict

from udp_jax.studies.configs.common import CHOICES

METHODS = ("full", "lora", "dreambooth", "textual_inversion")
PACKAGED = "tiny_ldm"
# Options of all methods.
OPTIONS = {"warmup_steps": 0, "decay": "constant", "weight_decay": 1e-2, "clip_norm": 1.0}
OPTIONS |= {"sample_steps": 50, "guidance_scale": 7.5}


def fine_tuning(method: str, title: str, *, model: str = "", **options) -> ConfigDict:
  """A fine-tuning run of `experiments.train`, with every setting at its default.

  Args:
    method: one of `METHODS`.
    title: title of the run.
    model: folder of the model, or "tiny_ldm".
    **options: options of the threat.
  """
  config = ConfigDict()
  config.title = title
  config.notice = ""
  config.seed = 0
  config.global_batch_size = 4

  config.data = ConfigDict()
  config.data.source = ""
  # Caption for all pictures; "" uses the captions in their folder (`udp_jax.data.captions`).
  config.data.prompt = ""
  config.data.limit = 0
  config.data.classes = ()
  config.data.strict = False
  config.data.captions_sha256 = ""

  # DreamBooth's class pictures come from a source, or from the model before its training.
  config.prior = ConfigDict({"prompt": "", "source": "", "num_images": 200})
  # Textual inversion: the new token, the word that it starts from, and "object" or "style".
  config.concept = ConfigDict(
    {"token": "<concept>", "init_word": "painting", "kind": "object", "num_vectors": 1}
  )
  config.model = ConfigDict({"path": model, "image_size": 0} | CHOICES)
  config.threat = ConfigDict({"name": method, "options": ConfigDict(OPTIONS | options)})
  # Samples drawn after training; () uses the captions as prompts, 0 draws none.
  config.samples = ConfigDict({"prompts": (), "num_images": 8})

  config.checkpoint = ConfigDict({"every_steps": 100})
  config.performance = ConfigDict(
    {
      "dtype": "float32",
      # "" is the backend's default (`models.performance`).
      "precision": "",
      # Dtype of parts that are not trained; "" is float32.
      "frozen_dtype": "",
      "conv_method": "",
      "attention": "",
      "vae_attention": "",
      "vae_slices": 1,
      "remat": False,
      "fsdp": 1,
      "steps_per_call": 10,
      "sample_batch_size": 4,
    }
  )
  return config


def stable_diffusion(config: ConfigDict) -> ConfigDict:
  """Sets up a config for a model of Stable Diffusion's size on an accelerator."""
  config.performance.update({"dtype": "bfloat16", "frozen_dtype": "bfloat16", "remat": True})
  return config


def frozen_xl(config: ConfigDict) -> ConfigDict:
  """Like `stable_diffusion` for XL, of which only low-rank updates are trained."""
  config.performance.frozen_parts = ("unet", "vae", "text_encoder")
  return stable_diffusion(config)


def small(config: ConfigDict) -> ConfigDict:
  """Sets up a config for the model in the package, on a CPU."""
  config.model.path = PACKAGED
  config.global_batch_size = 8
  config.prior.num_images = 32
  config.checkpoint.every_steps = 50
  config.performance.sample_batch_size = 8
  config.threat.options.update({"sample_steps": 25, "guidance_scale": 3.0})
  return config


def finish(config: ConfigDict, variant: str | None) -> ConfigDict:
  """Applies the `:smoke` variant: runs every part in seconds; the numbers mean nothing."""
  if variant == "smoke":
    config.notice = "A smoke run: it shows that every part works; the numbers mean nothing."
    config.data.limit = 4
    config.global_batch_size = 2
    config.samples.num_images = 2
    config.prior.num_images = 2
    config.threat.options.update({"train_steps": 4, "sample_steps": 2})
    config.checkpoint.every_steps = 2
    config.performance.update({"steps_per_call": 2, "sample_batch_size": 2})
  return config
