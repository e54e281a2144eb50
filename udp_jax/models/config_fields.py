"""Checks the values of model configs, which come from untrusted files."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from udp_jax.errors import ConfigError

# Larger than in any real model, and small enough that building such a model terminates.
_MOST = 1 << 16
_MOST_LEVELS = 32
_MOST_LAYERS = 64


def check(config: Any) -> None:
  """Checks a dataclass against its annotations: int, float, bool, str, tuples of these, or None.

  Integers must lie in [0, 65536], numbers of layers in [1, 64]; tuples have at most 32 entries.

  Raises:
    ConfigError: a value has another type, or is out of range.
  """
  for field in dataclasses.fields(config):
    value, kind = getattr(config, field.name), str(field.type)
    if not any(_fits(value, part.strip()) for part in kind.split("|")):
      raise ConfigError(f"{type(config).__name__}: {field.name} is {_short(value)}, not {kind}")
    if field.name == "layers_per_block" and not 1 <= value <= _MOST_LAYERS:
      raise ConfigError(f"{type(config).__name__}: {field.name} is {_short(value)}")


def _fits(value: Any, kind: str) -> bool:
  if kind == "None":
    return value is None
  if kind.startswith("tuple[") and kind.endswith(", ...]"):
    inner = kind.removeprefix("tuple[").removesuffix(", ...]")
    short = isinstance(value, tuple) and len(value) <= _MOST_LEVELS
    return short and all(_fits(entry, inner) for entry in value)
  if kind == "bool":
    return isinstance(value, bool)
  if kind == "int":
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and 0 <= value <= _MOST
  if kind == "float":
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and abs(value) < 1e30 and math.isfinite(value)
  if kind == "str":
    return isinstance(value, str)
  raise TypeError(f"no check for fields of type {kind}")


def _short(value: Any) -> str:
  try:
    return f"{value!r:.60}"
  except ValueError:  # An integer with thousands of digits.
    return "a number too large to print"
