"""Finds methods by module name, and makes them from the flat options of configs and flags.

A new method is one new file; only a module that is no method is named here (`_SHARED`). Options
that several methods share are fields of frozen dataclasses, which constructors take as groups;
configs and flags name only the fields:

  def udp(model, *, radius: float, game: Game = Game(), ...) -> Protection
  config.protections.udp = {"radius_255": 16, "train_steps": 20}    # radius, and game.train_steps

A constructor that uses only some fields of a group lists them in its annotation,
`sampling: Annotated[Sampling, ("sample_steps", "eta")]`; it does not accept the others.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from udp_jax.errors import ConfigError

# Modules in packages of methods that are not methods themselves.
_SHARED = (
  *("adaptive", "base", "constraints", "ensembles", "finetuning", "lookup"),
  *("maxmin", "options", "ranges", "spectrum", "surrogates", "targets"),
)
# (constructor, old name) -> new name, for options that older configs may still give.
RENAMED: dict[tuple[str, str], str] = {}
# The default of an option that has none.
REQUIRED = inspect.Parameter.empty


class Field(NamedTuple):
  """An option of a constructor, as configs and flags know it.

  Attributes:
    default: value if it is not given, or `REQUIRED`.
    group: keyword of the constructor that takes the option's dataclass; None if the option is a
      keyword of its own.
    annotation: its type, as spelled in the source.
  """

  default: Any
  group: str | None
  annotation: str


def available(package: str) -> list[str]:
  """Names of the methods in a package such as "udp_jax.protections", sorted."""
  path = importlib.import_module(package).__path__
  return sorted(m.name for m in pkgutil.iter_modules(path) if m.name not in _SHARED)


def constructor(package: str, name: str) -> Callable[..., Any]:
  """Returns the function `name` of the module `package.name`.

  Raises:
    ConfigError: there is no such method.
  """
  if name not in available(package):
    kind = package.rsplit(".", 1)[-1][:-1]
    raise ConfigError(f"unknown {kind} {name!r}; known: {', '.join(available(package))}")
  return getattr(importlib.import_module(f"{package}.{name}"), name)


def fields(function: Callable[..., Any]) -> dict[str, Field]:
  """Returns all options of a constructor by name, in order, with the fields of its groups.

  Raises:
    TypeError: two groups have a field of the same name, or an annotation names an unknown field.
  """
  found: dict[str, Field] = {}
  for name, (default, annotation, names) in _keywords(function).items():
    if names is None:
      own = {name: Field(default, None, annotation)}
    else:
      types = {field.name: str(field.type) for field in dataclasses.fields(default)}
      own = {n: Field(getattr(default, n), name, types[n]) for n in names}
    if twice := found.keys() & own.keys():
      raise TypeError(f"{function.__name__} has the option {min(twice)!r} twice")
    found |= own
  return found


def check_options(function: Callable[..., Any], what: str, options: Mapping[str, Any]) -> None:
  """Checks the names of flat options against a constructor's `fields`.

  Args:
    function: the constructor.
    what: name of the method in errors, "protection udp".
    options: options by their names in configs.

  Raises:
    ConfigError: an option is unknown, renamed or missing; the message names it.
  """
  known = fields(function)
  for option in options:
    if option not in known and (function.__name__, option) in RENAMED:
      new = RENAMED[function.__name__, option]
      raise ConfigError(f"{what} has no option {option!r}: it is called {new!r} now")
    if option not in known:
      raise ConfigError(f"{what} has no option {option!r}; it has: {', '.join(sorted(known))}")
  missing = [n for n, field in known.items() if field.default is REQUIRED and n not in options]
  if missing:
    raise ConfigError(f"{what} needs the option(s) {', '.join(missing)}")


def make(function: Callable[..., Any], what: str, *args: Any, options: Mapping[str, Any]) -> Any:
  """Calls a constructor with flat options, which it receives as its groups.

  Args:
    function: the constructor.
    what: name of the method in errors, "protection udp".
    *args: passed on as first arguments, such as the model.
    options: options by their names in configs; fields of a group that are not given keep the
      constructor's default.

  Raises:
    ConfigError: an option is unknown, renamed or missing, or the constructor raises it.
  """
  check_options(function, what, options)
  known, keywords = fields(function), _keywords(function)
  given: dict[str, Any] = {}
  groups: dict[str, dict[str, Any]] = {}
  for option, value in options.items():
    group = known[option].group
    if group is None:
      given[option] = value
    else:
      groups.setdefault(group, {})[option] = value
  for group, values in groups.items():
    given[group] = dataclasses.replace(keywords[group].default, **values)
  return function(*args, **given)


def scaled(options: Mapping[str, Any], what: str) -> dict[str, Any]:
  """Converts options in 8-bit levels (`_255`) to the [0, 1] scale, and drops the suffix.

  Args:
    options: options by their names in configs.
    what: name of the method in errors, "protection udp".

  Raises:
    ConfigError: an option in 8-bit levels is not a number, or is given on both scales.
  """
  for option, value in options.items():
    if option.endswith("_255") and (other := option.removesuffix("_255")) in options:
      raise ConfigError(f"{what}: give {other} or {option}, not both")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if option.endswith("_255") and not number:
      raise ConfigError(f"{what}: {option} must be a number, got {value!r}")
  return {k.removesuffix("_255"): v / 255 if k.endswith("_255") else v for k, v in options.items()}


def only(what: str, group: Any, taken: Collection[str]) -> None:
  """Raises ConfigError if a group sets a field that a method does not use.

  `make` checks the options of configs; this check is for direct callers of a constructor, so that
  no option is silently ignored.

  Args:
    what: name of the method in errors.
    group: the dataclass, as the caller gave it.
    taken: names of the fields that the method uses.

  Raises:
    ConfigError: another field is not at its default.
  """
  for field in dataclasses.fields(group):
    if field.name not in taken and getattr(group, field.name) != field.default:
      kind = type(group).__name__
      raise ConfigError(f"{what} has no use for {kind}.{field.name}; it takes: {', '.join(taken)}")


class _Keyword(NamedTuple):
  """A keyword-only parameter; `names` are the used fields of a group, or None without a group."""

  default: Any
  annotation: str
  names: tuple[str, ...] | None


def _keywords(function: Callable[..., Any]) -> dict[str, _Keyword]:
  found = {}
  for name, parameter in inspect.signature(function).parameters.items():
    if parameter.kind is parameter.KEYWORD_ONLY:
      names = None
      if dataclasses.is_dataclass(parameter.default):
        names = tuple(field.name for field in dataclasses.fields(parameter.default))
        hint = typing.get_type_hints(function, include_extras=True)[name]
        names = hint.__metadata__[0] if typing.get_origin(hint) is typing.Annotated else names
      found[name] = _Keyword(parameter.default, str(parameter.annotation), names)
  return found
