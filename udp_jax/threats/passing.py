"""Options that many threats have in common are written once, where they are used."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def passes_on(template: Callable[..., Any], *names: str) -> Callable[[F], F]:
  """For constructors that hand `**options` on to `template`: says which ones those are.

  The options take the place of `**options` in the constructor's signature, which is what
  `lookup.check_options` and configs go by, and of its line "**options: ..." in the docstring. An
  option that the constructor names itself is its own.

  Args:
    template: has keyword options `names`, each with an entry under "Args:" in its docstring.
    *names: of the options.

  Raises:
    ValueError: the constructor, or the template, is not written like that.
  """
  theirs = inspect.signature(template).parameters

  def decorate(function: F) -> F:
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    added = [theirs[name] for name in names if name not in signature.parameters]
    entries = "".join(_entry(template, parameter.name) for parameter in added)
    doc, count = re.subn(r"\n    \*\*options: .*", lambda _: entries, function.__doc__ or "")
    if count != 1 or len(own) == len(signature.parameters):
      raise ValueError(f"{function.__name__} does not say what its **options are")
    decorated: Any = function
    decorated.__signature__ = signature.replace(parameters=[*own, *added])
    decorated.__doc__ = doc
    return function

  return decorate


def _entry(template: Callable[..., Any], name: str) -> str:
  """The lines about one argument in a docstring."""
  found = re.search(rf"\n    {name}: .*(\n      .*)*", template.__doc__ or "")
  if found is None:
    raise ValueError(f"{template.__name__} does not say what {name} is")
  return found.group()
