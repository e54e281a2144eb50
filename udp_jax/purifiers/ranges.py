"""What the options of purifiers may be: by their types, and numbers by their names.

`base.build` checks all options here, so that no method says by a stack trace that a value is none
of its own. What depends on a model or a picture is checked where that is known.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from udp_jax.errors import ConfigError


class Range(NamedTuple):
  """From `least` to `most`, both included unless `above`, which leaves `least` out."""

  least: float
  most: float
  above: bool = False
  odd: bool = False

  def holds(self, value: float) -> bool:
    """Whether a number lies in it; NaN lies nowhere."""
    inside = value > self.least if self.above else value >= self.least
    return inside and value <= self.most and not (self.odd and value % 2 == 0)

  def __str__(self) -> str:
    start = f"above {self.least:g} and at most" if self.above else f"{self.least:g} to"
    return f"{'odd, ' if self.odd else ''}{start} {self.most:g}"


_COUNT = Range(1, 1_000_000)
_UNIT = Range(0, 1)
_POSITIVE = Range(0, 1_000_000, above=True)
RANGES: dict[str, Range] = {
  "bilateral_passes": Range(0, 1_000_000),
  "diameter": Range(1, 255, odd=True),
  "drop_rate": Range(0, 0.99),
  "factor": Range(0, 1, above=True),
  "guided_passes": Range(0, 1_000_000),
  "guided_radius": Range(0, 255),
  "guided_regulariser": Range(0, 1, above=True),
  "kernel_size": Range(0, 511),
  "learning_rate": Range(0, 1000, above=True),
  "mix": _UNIT,
  "noise_std": _UNIT,
  "num_iterations": _COUNT,
  "num_passes": _COUNT,
  "num_steps": _COUNT,
  "perceptual_budget": Range(0, 1_000_000),
  "perceptual_weight": Range(0, 1_000_000),
  "quality": Range(1, 100),
  "sigma": Range(0, 100, above=True),
  "sigma_color": _POSITIVE,
  "sigma_space": _POSITIVE,
  "std": Range(0, 10),
  "stride": Range(0, 100_000),
  "timestep": _COUNT,
  "weight": Range(0, 1_000_000),
}

# By annotations, as they are written in constructors.
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
  """Checks the values of a constructor's options.

  Args:
    function: the constructor.
    name: of the method, for errors.
    options: known ones.

  Raises:
    ConfigError: a value of another type, or outside of the option's range.
  """
  parameters = inspect.signature(function).parameters
  for option, value in options.items():
    fits, what = _TYPES.get(str(parameters[option].annotation), (lambda v: True, ""))
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
