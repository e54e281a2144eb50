"""Allowed values of purifiers' options: types by annotation, and ranges by option name.

`base.build` checks all options here, so that a bad value gives a clear error and not a stack trace
from a method. Checks that need a model or a picture are made where these are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from udp_jax import registry
from udp_jax.errors import ConfigError


class Range(NamedTuple):
  """From `least` to `most`, including both; `above` excludes `least`, `odd` even numbers."""

  least: float
  most: float
  above: bool = False
  odd: bool = False

  def holds(self, value: float) -> bool:
    """Whether a number lies in the range; NaN never does."""
    inside = value > self.least if self.above else value >= self.least
    return inside and value <= self.most and not (self.odd and value % 2 == 0)

  def __str__(self) -> str:
    start = f"above {self.least:g} and at most" if self.above else f"{self.least:g} to"
    return f"{'odd, ' if self.odd else ''}{start} {self.most:g}"


_COUNT = Range(1, 1_000_000)
_UNIT = Range(0, 1)
_POSITIVE = Range(0, 1_000_000, above=True)
RANGES: dict[str, Range] = {
  "amount": Range(0, 100),
  "amplitude_cutoff": Range(0, 100_000),
  "bilateral_passes": Range(0, 1_000_000),
  "diameter": Range(1, 255, odd=True),
  "drop_rate": Range(0, 0.99),
  "factor": Range(0, 1, above=True),
  "gain": Range(0, 100),
  "guided_passes": Range(0, 1_000_000),
  "guided_radius": Range(0, 255),
  "guided_regulariser": Range(0, 1, above=True),
  "kernel_size": Range(0, 511),
  "learning_rate": Range(0, 1000, above=True),
  "mask_sigma": Range(0, 100, above=True),
  "mix": _UNIT,
  "noise_std": _UNIT,
  "num_iterations": _COUNT,
  "num_passes": _COUNT,
  "num_steps": _COUNT,
  "perceptual_budget": Range(0, 1_000_000),
  "perceptual_weight": Range(0, 1_000_000),
  "phase_cutoff": Range(0, 100_000),
  "phase_range": Range(0, 3.1416),
  "quality": Range(1, 100),
  "sigma": Range(0, 100, above=True),
  "sigma_color": _POSITIVE,
  "sigma_space": _POSITIVE,
  "std": Range(0, 10),
  "stride": Range(0, 100_000),
  "tile_size": Range(64, 100_000),
  "timestep": _COUNT,
  "weight": Range(0, 1_000_000),
}

# Checks by annotation, spelled as in the constructors.
_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
  "int": (lambda v: _is_int(v), "a whole number"),
  "float": (lambda v: _is_number(v), "a number"),
  "bool": (lambda v: isinstance(v, bool), "true or false"),
  "str": (lambda v: isinstance(v, str), "a word"),
  "int | Sequence[int]": (
    lambda v: _is_int(v) or (_is_list(v) and len(v) > 0 and all(map(_is_int, v))),
    "a whole number, or a list of them",
  ),
  "Sequence[Mapping[str, Any]]": (
    lambda v: _is_list(v) and all(isinstance(entry, Mapping) for entry in v),
    "a list of objects",
  ),
}


def check(function: Callable[..., Any], name: str, options: Mapping[str, Any]) -> None:
  """Checks the values of options for a constructor.

  Args:
    function: the constructor.
    name: name of the method, for errors.
    options: options that the constructor is known to have, by name.

  Raises:
    ConfigError: a value has another type, or lies outside the option's range.

  >>> from udp_jax.purifiers.gaussian_noise import gaussian_noise
  >>> check(gaussian_noise, "gaussian_noise", {"std": -1.0})
  Traceback (most recent call last):
  udp_jax.errors.ConfigError: purifier gaussian_noise: std must be 0 to 10, got -1.0
  """
  known = registry.fields(function)
  for option, value in options.items():
    fits, what = _TYPES.get(known[option].annotation, (lambda v: True, ""))
    reach = RANGES.get(option)
    if fits(value):
      numbers = value if _is_list(value) else [value]
      if reach is None or all(reach.holds(v) for v in numbers if _is_number(v)):
        continue
      wanted = str(reach)
    else:
      wanted = what if reach is None else f"{what}, {reach}"
    raise ConfigError(f"purifier {name}: {option} must be {wanted}, got {value!r}")


def _is_int(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_list(value: Any) -> bool:
  return isinstance(value, Sequence) and not isinstance(value, str | bytes)
