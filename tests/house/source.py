"""Functions, their parameters, and the examples in docstrings, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.house import imports

# A public function of these carries an example that runs.
WITH_EXAMPLES = ("ops", "data", "objectives", "protections", "purifiers", "threats")
_METHODS = ("protections", "purifiers", "threats")


class Function(NamedTuple):
  """A function as it is written.

  Attributes:
    module: dotted name of its module.
    name: with the classes and functions around it, "Batch.put".
    parameters: names, with "*" before those that take any number; no `self`.
    line: where it begins.
    docstring: empty for none.
  """

  module: str
  name: str
  parameters: tuple[str, ...]
  line: int
  docstring: str

  def __str__(self) -> str:
    return f"{self.module}.{self.name}"

  @property
  def is_public(self) -> bool:
    """Whether it stands at a module's top level, under names without an underscore."""
    parts = [*self.module.split("."), self.name]
    return "." not in self.name and not any(part.startswith("_") for part in parts)

  @property
  def makes_a_method(self) -> bool:
    """Whether it is the constructor by which a protection, purifier or threat is looked up."""
    parts = self.module.split(".")
    return len(parts) == 3 and parts[1] in _METHODS and parts[2] == self.name


def functions(module: str, path: Path) -> Iterator[Function]:
  """All functions of a file, those of classes and of other functions too."""

  def inside(node: ast.AST, outer: str) -> Iterator[Function]:
    for child in imports.statements(node, deep=False):
      name = outer
      if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
        name = f"{outer}{child.name}."
        docstring = ast.get_docstring(child) or ""
        yield Function(module, name[:-1], _parameters(child.args), child.lineno, docstring)
      elif isinstance(child, ast.ClassDef):
        name = f"{outer}{child.name}."
      yield from inside(child, name)

  yield from inside(imports.tree(path), "")


def _parameters(given: ast.arguments) -> tuple[str, ...]:
  names = [one.arg for one in (*given.posonlyargs, *given.args)]
  if names[:1] in (["self"], ["cls"]):
    names = names[1:]
  names += [f"*{given.vararg.arg}"] if given.vararg else []
  names += [one.arg for one in given.kwonlyargs]
  return (*names, f"**{given.kwarg.arg}") if given.kwarg else tuple(names)


def with_examples(root: Path) -> dict[str, Path]:
  """The modules of the packages whose public functions carry examples."""
  return {
    name: path
    for name, path in imports.modules(root).items()
    if name.startswith("udp_jax.") and imports.layer(name) in WITH_EXAMPLES
  }


def docstrings(path: Path) -> Iterator[tuple[str, int, str]]:
  """Name, line and text of every docstring of a file; the module's own has no name."""
  tree = imports.tree(path)
  for node in (tree, *imports.statements(tree)):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
      if text := ast.get_docstring(node):
        yield getattr(node, "name", ""), node.body[0].lineno, text
