"""Counts what the house promises, in one checkout or in several beside each other.

  python -m tests.house.counts BEFORE AFTER
  python -m tests.house.counts --list .

--list also names what was counted: the longest way of imports, circles, functions with more than
eight parameters, clones, and functions without an example.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from tests.house import clones, imports, source

MOST_PARAMETERS = 8
MOST_OF_A_STAGE = 6
_CONFIGS = ("experiments.configs", "udp_jax.studies.configs")


class Figure(NamedTuple):
  """A line of the table: what was counted, how many, and which."""

  label: str
  value: Any
  which: list[str]


def _lines(paths: list[Path]) -> int:
  return sum(len(path.read_text("utf-8").splitlines()) for path in paths)


def _found(sources: dict[str, Path], pattern: str) -> list[str]:
  """Places of a pattern in lines that are no comment."""
  return [
    f"{module}:{number}"
    for module, path in sources.items()
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
    if re.search(pattern, line) and not line.lstrip().startswith("#")
  ]


def _of_functions(sources: dict[str, Path]) -> list[Figure]:
  every = [one for name, path in sources.items() for one in source.functions(name, path)]
  every.sort(key=lambda one: (-len(one.parameters), str(one)))
  others = [one for one in every if not one.makes_a_method]
  stages = [one for one in others if one.is_public and one.module.startswith("udp_jax.stages")]

  def longest(found: list[source.Function], label: str) -> Figure:
    return Figure(label, max((len(one.parameters) for one in found), default=0), [])

  def over(found: list[source.Function], most: int, label: str) -> Figure:
    which = [f"{len(one.parameters)}: {one}" for one in found if len(one.parameters) > most]
    return Figure(label, len(which), which)

  apart = "outside constructors of methods"
  return [
    longest(every, "longest parameter list"),
    longest(others, f"longest parameter list {apart}"),
    over(every, MOST_PARAMETERS, f"functions of over {MOST_PARAMETERS} parameters"),
    over(others, MOST_PARAMETERS, f"functions of over {MOST_PARAMETERS} parameters {apart}"),
    over(stages, MOST_OF_A_STAGE, f"functions of stages with over {MOST_OF_A_STAGE}"),
  ]


def _of_examples(root: Path) -> list[Figure]:
  named = source.with_examples(root)
  public = [
    one for name, path in named.items() for one in source.functions(name, path) if one.is_public
  ]
  without = [str(one) for one in public if ">>> " not in one.docstring]
  lines = sum(
    text.count(">>> ")
    for path in imports.modules(root).values()
    for _, _, text in source.docstrings(path)
  )
  label = f"public functions of {len(source.WITH_EXAMPLES)} packages with an example"
  return [
    Figure("lines of examples (`>>>`)", lines, []),
    Figure(label, f"{len(public) - len(without)} of {len(public)}", without),
  ]


def count(root: Path) -> list[Figure]:
  """The figures of a checkout."""
  every = imports.modules(root)
  sources = {name: path for name, path in every.items() if not name.startswith(_CONFIGS)}
  at_root = sorted(path.stem for path in (root / "udp_jax").glob("*.py"))
  graph = imports.read(root)
  chain, circles = imports.longest_chain(graph), imports.circles(graph)
  known = {name for line in imports.ORDER for name in line}
  ordered = all(imports.layer(name) in known for name in graph if name != imports.FACE)
  upward = imports.upward(graph) if ordered else []
  signatures = _found(every, r"inspect\.signature|from inspect import .*signature")
  unlocked = _found(sources, r"\.unlocked\(\)")
  copies = [str(one).replace(f"{root}/", "") for one in clones.find([*sources.values()])]
  tests = sorted((root / "tests").rglob("*.py"))
  share = _lines(tests) / _lines([*every.values()])
  return [
    Figure("modules at the root", len(at_root), at_root),
    Figure("floors", len(chain), chain),
    Figure("circles", len(circles), [" = ".join(sorted(circle)) for circle in circles]),
    Figure("imports that go up", len(upward) if ordered else "no order", upward),
    *_of_functions(sources),
    Figure("`inspect.signature`", len(signatures), signatures),
    Figure(
      "places that unlock a config, outside of `experiments/configs`", len(unlocked), unlocked
    ),
    Figure(f"clones of {clones.LEAST} lines and more", len(copies), copies),
    Figure("lines of source", _lines([*every.values()]), []),
    Figure("lines of tests, of source", f"{share:.2f}", []),
    Figure("WORKSPACE.md, bytes", (root / "WORKSPACE.md").stat().st_size, []),
    *_of_examples(root),
  ]


def name(root: Path) -> str:
  """The commit of a checkout; the folder's name where there is none."""
  asked = ["git", "-C", str(root), "rev-parse", "--short=7", "HEAD"]
  done = subprocess.run(asked, capture_output=True, text=True, check=False)
  return done.stdout.strip() or root.resolve().name


def table(columns: dict[str, list[Figure]]) -> str:
  """Figures of checkouts beside each other, as Markdown."""
  lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
  for row in zip(*columns.values(), strict=True):
    lines.append(f"| {row[0].label} | {' | '.join(str(figure.value) for figure in row)} |")
  return "\n".join(lines)


def main() -> None:
  """Prints the table of the checkouts on the command line."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("roots", nargs="*", type=Path, default=[Path()], metavar="CHECKOUT")
  parser.add_argument("--list", action="store_true", help="also name what was counted")
  given = parser.parse_args()
  columns = {name(root): count(root) for root in given.roots}
  print(table(columns))
  for label, figures in columns.items() if given.list else ():
    for figure in figures:
      if figure.which:
        print("\n  ".join([f"\n{label}, {figure.label}: {figure.value}", *figure.which]))


if __name__ == "__main__":
  main()
