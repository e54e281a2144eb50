"""Building block of the configs of `experiments.purify`."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from experiments.configs.common import CHOICES


def purification(method: str, **options: Any) -> ConfigDict:
  """Returns one purifier with all of its options; options that are not given have their default.

  Raises:
    ConfigError: the method is unknown.
  """
  from udp_jax import registry

  config = ConfigDict()
  config.method = method
  config.seed = 0
  known = registry.fields(registry.constructor("udp_jax.purifiers", method))
  # `cond` is left out: it is an array, made from --prompt.
  config.options = ConfigDict(
    {
      name: field.default
      for name, field in known.items()
      if field.default is not registry.REQUIRED and name != "cond"
    }
  )
  with config.options.unlocked():
    config.options.update(options)
  config.per_device_batch_size = 8
  config.steps_per_call = 50
  config.model = ConfigDict({"path": "", "image_size": 0} | CHOICES)
  config.performance = ConfigDict(
    {
      "dtype": "float32",
      # "" uses the backend's default; values of `precision`: `models.performance`.
      "precision": "",
      "conv_method": "",
      "attention": "",
      "vae_attention": "",
      "vae_slices": 1,
      "remat": False,
    }
  )
  return config
