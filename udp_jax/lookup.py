"""Finds methods by module name, so that a new method is one new file and no edit elsewhere."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

from udp_jax.errors import ConfigError

# Modules of a package of methods that are not methods themselves.
_SHARED = (
  *("adaptive", "base", "editing", "finetuning", "lookup"),
  *("maxmin", "passing", "ranges", "surrogates", "targets"),
)


def available(package: str) -> list[str]:
  """Names of the methods in a package such as "udp_jax.protections", sorted."""
  path = importlib.import_module(package).__path__
  return sorted(m.name for m in pkgutil.iter_modules(path) if m.name not in _SHARED)


def constructor(package: str, name: str) -> Callable[..., Any]:
  """The function `name` of the module `package.name`.

  Raises:
    ConfigError: no such method.
  """
  if name not in available(package):
    kind = package.rsplit(".", 1)[-1][:-1]
    raise ConfigError(f"unknown {kind} {name!r}; known: {', '.join(available(package))}")
  return getattr(importlib.import_module(f"{package}.{name}"), name)


def check_options(function: Callable[..., Any], name: str, options: dict[str, Any]) -> None:
  """Checks keyword options against a constructor's signature.

  Raises:
    ConfigError: an unknown or a missing option, by name.
  """
  parameters = inspect.signature(function).parameters.values()
  keywords = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
  for option in options:
    if option not in keywords:
      raise ConfigError(f"{name} has no option {option!r}; it has: {', '.join(sorted(keywords))}")
  missing = [n for n, p in keywords.items() if p.default is p.empty and n not in options]
  if missing:
    raise ConfigError(f"{name} needs the option(s) {', '.join(missing)}")
