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
  `lookup.check_options` and configs go by, and of its entry "**options: ..." in the docstring,
  which is left without the indentation of its place in the source. An option that the constructor
  names itself is its own.

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
    entries = [argument_entry(template, parameter.name) for parameter in added]
    place = argument_entry(function, "**options")
    if len(own) == len(signature.parameters):
      raise ValueError(f"{function.__name__} takes no **options, as its docstring says it does")
    decorated: Any = function
    decorated.__signature__ = signature.replace(parameters=[*own, *added])
    decorated.__doc__ = _clean(function).replace(place, "".join(entries), 1).rstrip()
    return function

  return decorate


def argument_entry(function: Callable[..., Any], name: str) -> str:
  """The lines about one argument under "Args:" in a function's docstring.

  They come without the indentation that the function has in its source: Python 3.13 and later
  strip it when they compile, earlier versions leave it.

  Args:
    function: has a docstring with "Args:", entries indented by two.
    name: of the argument, as the entry has it: "steps", "**options".

  Returns:
    "  steps: how many." and the lines that continue it, each with its newline.

  Raises:
    ValueError: there is no such entry, or there are several.
  """
  pattern = rf"^  {re.escape(name)}: .*\n(?:    .*\n)*"
  found = re.findall(pattern, _clean(function), flags=re.MULTILINE)
  if len(found) != 1:
    raise ValueError(f"the docstring of {function.__name__} has {len(found)} entries for {name}")
  return found[0]


def _clean(function: Callable[..., Any]) -> str:
  return f"{inspect.getdoc(function) or ''}\n"
