"""Building block of the configs of `udp-jax purify` and `experiments.purify`."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from udp_jax.studies.configs.common import CHOICES


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
  defaults = {
    name: field.default
    for name, field in known.items()
    if field.default is not registry.REQUIRED and name != "cond"
  }
  config.options = ConfigDict(defaults | options)
  config.per_device_batch_size = 8
  config.steps_per_call = 50
  config.model = ConfigDict({"path": "", "image_size": 0} | CHOICES)
  # The prior of diffpure, freqpure and gridpure; "" for `model`.
  config.purifier_model = ConfigDict({"path": ""})
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
