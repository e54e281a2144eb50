"""Which module imports which, read from the source: nothing has to be imported for it.

Imports inside functions and for type checkers count like any other.
"""

from __future__ import annotations

import ast
import functools
import graphlib
from collections.abc import Iterator
from pathlib import Path

TOPS = ("udp_jax", "experiments", "launch")
# From the roof down. A package imports itself and those on lines below its own; those that share a
# line know nothing of each other.
ORDER = (
  ("launch",),
  ("experiments",),
  ("commands",),
  ("page",),
  ("benchmark", "studies"),
  ("report", "stages"),
  ("metrics", "protections", "purifiers", "threats"),
  ("objectives",),
  ("models",),
  ("data",),
  ("runtime",),
  ("ops",),
  ("registry",),
  ("published",),
  ("errors",),
)
# The public face stands outside: it may import everything, and nothing imports it.
FACE = "udp_jax"

Imports = dict[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
  """Files of all modules of a checkout, by dotted name."""
  found = {}
  for top in TOPS:
    for path in sorted((root / top).rglob("*.py")):
      parts = path.relative_to(root).with_suffix("").parts
      found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
  return found


@functools.cache
def tree(path: Path) -> ast.Module:
  """A file's syntax, read once."""
  return ast.parse(path.read_text("utf-8"))


def statements(node: ast.AST, deep: bool = True) -> Iterator[ast.AST]:
  """Statements inside of a node; without expressions, in which nothing is imported or defined.

  Args:
    node: a module, or a statement that holds others.
    deep: those inside of these too.
  """
  for field in ("body", "orelse", "handlers", "finalbody", "cases"):
    branch = getattr(node, field, ())
    for child in branch if isinstance(branch, list) else ():
      yield child
      if deep:
        yield from statements(child)


def _imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
  """Modules of ours that a module names in any import statement, wherever that stands."""
  for node in statements(tree(path)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names if alias.name.split(".")[0] in TOPS)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, "imports here have the whole name of what they import"
      if node.module and node.module.split(".")[0] in TOPS:
        for alias in node.names:
          inner = f"{node.module}.{alias.name}"
          yield inner if inner in known else node.module


def read(root: Path) -> Imports:
  """What every module of a checkout imports of ours."""
  known = modules(root)
  return {name: set(_imported(path, known)) - {name} for name, path in known.items()}


def layer(module: str) -> str:
  """The package, or the module at the root, that ORDER names."""
  parts = module.split(".")
  return parts[1] if parts[0] == "udp_jax" else parts[0]


def upward(imports: Imports) -> list[str]:
  """Imports that do not go down."""
  height = {name: -line for line, names in enumerate(ORDER) for name in names}
  return [
    f"{module} > {target}"
    for module, targets in imports.items()
    for target in sorted(targets)
    if module != FACE
    if target == FACE
    or (layer(module) != layer(target) and height[layer(module)] <= height[layer(target)])
  ]


def _house(imports: Imports) -> Imports:
  return {module: targets - {FACE} for module, targets in imports.items() if module != FACE}


def circles(imports: Imports) -> list[set[str]]:
  """Groups of modules each of which imports all others of its group, directly or not."""
  house = _house(imports)
  below: Imports = {}
  for module in house:
    below[module], waiting = set(), [module]
    while waiting:
      new = house.get(waiting.pop(), set()) - below[module]
      below[module] |= new
      waiting += new
  groups = {
    frozenset(other for other in below[module] if module in below.get(other, ()))
    for module in house
    if module in below[module]
  }
  return sorted(map(set, groups), key=sorted)


def longest_chain(imports: Imports) -> list[str]:
  """The longest way down. The modules of a circle stand on one floor, joined by " = "."""
  floor = {module: " = ".join(sorted(group)) for group in circles(imports) for module in group}
  house: Imports = {}
  for module, targets in _house(imports).items():
    own = floor.get(module, module)
    house.setdefault(own, set()).update({floor.get(target, target) for target in targets} - {own})
  chains: dict[str, list[str]] = {}
  for module in graphlib.TopologicalSorter(house).static_order():
    below = max((chains[target] for target in house.get(module, ())), key=len, default=[])
    chains[module] = [module, *below]
  return max(chains.values(), key=len)
