"""What docstrings say of arguments, for tests that ask it of every method."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any


def argument_entry(documented: Callable[..., Any], name: str) -> str:
  """The lines about one argument, or one attribute, in a docstring.

  They come without the indentation that the docstring has in its source: Python 3.13 and later
  strip it when they compile, earlier versions leave it.

  Args:
    documented: a function or class whose docstring has entries indented by two.
    name: the argument as its entry has it: "steps", "**options".

  Returns:
    "  steps: how many." and the lines that continue it, each with its newline.

  Raises:
    ValueError: there is no such entry, or there are several.
  """
  pattern = rf"^  {re.escape(name)}: .*\n(?:    .*\n)*"
  text = f"{inspect.getdoc(documented) or ''}\n"
  found = re.findall(pattern, text, flags=re.MULTILINE)
  if len(found) != 1:
    raise ValueError(f"the docstring of {documented.__name__} has {len(found)} entries for {name}")
  return found[0]


def check_constructor(function: Callable[..., Any]) -> None:
  """Asserts that a constructor takes a model and then keywords, all of them documented.

  Groups of options are documented by the dataclass that they are.
  """
  parameters = list(inspect.signature(function).parameters.values())
  assert [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY] == ["model"]
  for parameter in parameters:
    assert argument_entry(function, parameter.name)
    if dataclasses.is_dataclass(parameter.default):
      for field in dataclasses.fields(parameter.default):
        assert argument_entry(type(parameter.default), field.name)
