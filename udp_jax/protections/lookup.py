"""Builds a protection from its name and options in 8-bit levels."""

from __future__ import annotations

from typing import Any

from udp_jax import lookup
from udp_jax.errors import ConfigError
from udp_jax.models.base import DiffusionModel
from udp_jax.protections.base import Protection

_PACKAGE = "udp_jax.protections"
# Methods that look at no model: what the others are measured against.
CONTROLS = ("random_noise", "matched_noise", "shuffled_delta")


def available() -> list[str]:
  """Names of all protections and controls."""
  return lookup.available(_PACKAGE)


def build(name: str, model: DiffusionModel, options: dict[str, Any]) -> Protection:
  """Makes the protection `name`.

  Args:
    name: a module of this package.
    model: the attacked model.
    options: the constructor's keyword arguments. One that ends in `_255` is in 8-bit levels and
      becomes the argument without the suffix, divided by 255.

  Raises:
    ConfigError: an unknown protection, or an unknown, missing or unusable option.
  """
  function = lookup.constructor(_PACKAGE, name)
  for option, value in options.items():
    if option.endswith("_255") and not isinstance(value, int | float):
      raise ConfigError(f"protection {name}: {option} must be a number, got {value!r}")
  scaled = {
    k.removesuffix("_255"): v / 255 if k.endswith("_255") else v for k, v in options.items()
  }
  lookup.check_options(function, f"protection {name}", scaled)
  return function(model, **scaled)
