"""The budget of a saved file in 8-bit levels: its names, and what it may be."""

from __future__ import annotations

from typing import Any

from udp_jax.errors import ConfigError

# Budgets by name. "strong" is the default and what the training evidence was measured at, "medium"
# what the evidence on pictures of any size was; nothing was measured at "gentle".
STRENGTHS = {"gentle": 4.0, "medium": 8.0, "strong": 16.0}
# Steps of this part of the radius: 2 levels for "strong", the configs' default.
_STEPS_TO_THE_RIM = 8


def levels(name: str, strength: Any) -> float:
  """Returns the radius in 8-bit levels of "gentle", "medium", "strong", or of a number of levels.

  Args:
    name: the field or flag that holds the value, for the message.
    strength: a name in `STRENGTHS`, a number, or the text of one.

  Raises:
    ConfigError: it is neither, or a number that is no budget.

  >>> levels("strength", "medium"), levels("strength", "12")
  (8.0, 12.0)
  """
  if isinstance(strength, str) and strength in STRENGTHS:
    return STRENGTHS[strength]
  try:
    if isinstance(strength, bool):
      raise TypeError
    radius_255 = float(strength)
  except (TypeError, ValueError):
    known = ", ".join(STRENGTHS)
    raise ConfigError(f"{name} is {strength!r}: it must be {known} or a number of levels") from None
  check_radius_255(name, radius_255)
  return radius_255


def step(radius_255: float) -> float:
  """Returns the length of a step for a strength, in 8-bit levels.

  >>> step(levels("strength", "gentle"))
  0.5
  """
  return radius_255 / _STEPS_TO_THE_RIM


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
