"""Building block of the configs of `experiments.purify`."""

from __future__ import annotations

import inspect
from typing import Any

from ml_collections import ConfigDict


def purification(method: str, **options: Any) -> ConfigDict:
  """One purifier with all of its options, those not given at their defaults.

  Raises:
    ConfigError: an unknown method.
  """
  from udp_jax import lookup

  config = ConfigDict()
  config.method = method
  config.seed = 0
  parameters = inspect.signature(lookup.constructor("udp_jax.purifiers", method)).parameters
  # Conditioning is an array, made of --prompt.
  config.options = ConfigDict(
    {
      p.name: p.default
      for p in parameters.values()
      if p.kind is p.KEYWORD_ONLY and p.default is not p.empty and p.name != "cond"
    }
  )
  with config.options.unlocked():
    config.options.update(options)
  config.per_device_batch_size = 8
  config.steps_per_call = 50
  config.model = ConfigDict({"path": "", "image_size": 0})
  config.performance = ConfigDict(
    {
      "dtype": "float32",
      # "" is the backend's default.
      "conv_method": "",
      "attention": "",
      "vae_attention": "",
      "vae_slices": 1,
      "remat": False,
    }
  )
  return config
