"""Builds a protection from its name and options in 8-bit levels."""

from __future__ import annotations

from typing import Any

from udp_jax import registry
from udp_jax.models.base import DiffusionModel
from udp_jax.protections.base import Protection

_PACKAGE = "udp_jax.protections"
# Methods that use no model; the others are compared with them.
CONTROLS = ("random_noise", "matched_noise", "shuffled_delta")


def available() -> list[str]:
  """Names of all protections and controls.

  >>> {"udp", "eudp", "mist"} <= set(available())
  True
  """
  return registry.available(_PACKAGE)


def build(name: str, model: DiffusionModel, options: dict[str, Any]) -> Protection:
  """Makes the protection `name`.

  Args:
    name: a module of this package.
    model: the attacked model.
    options: options of the constructor by their flat names (`registry.fields`). An option that ends
      in `_255` is in 8-bit levels; it sets the option without the suffix, divided by 255.

  Raises:
    ConfigError: the protection is unknown, or an option is unknown, missing or unusable.

  >>> from udp_jax.models import toy
  >>> options = {"radius_255": 8, "step_size_255": 1, "train_steps": 20}
  >>> build("eudp", toy.on_pixels(), options).trains
  20
  """
  function, what = registry.constructor(_PACKAGE, name), f"protection {name}"
  return registry.make(function, what, model, options=registry.scaled(options, what))
