"""Checks the budget of a saved file, in 8-bit levels."""

from __future__ import annotations

from typing import Any

from udp_jax.errors import ConfigError


def check_radius_255(name: str, value: Any, *, least: int = 1) -> None:
  """Raises ConfigError unless `value` is a valid budget of a saved file.

  Args:
    name: the field or flag that holds the value, for the message.
    value: the value to check, of any type.
    least: smallest valid value; 0 where files are only compared and may be equal.

  >>> check_radius_255("radius_255", 8)  # Nothing is wrong with that.
  """
  number = isinstance(value, int | float) and not isinstance(value, bool)
  if not (number and least <= value <= 255):  # Also refuses NaN.
    raise ConfigError(
      f"{name} is {value}: it must be from {least} to 255, in levels of the saved 8-bit file, "
      "which changes by whole levels"
    )
