"""Code that stands in two places: runs of ten equal lines and more.

Comments, docstrings, imports, and lines of literals and brackets alone are left out; literals are
taken to be equal, names are not.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.house import imports

LEAST = 10
_SPACE = (
  tokenize.COMMENT,
  tokenize.NL,
  tokenize.NEWLINE,
  tokenize.INDENT,
  tokenize.DEDENT,
  tokenize.ENDMARKER,
)


class Clone(NamedTuple):
  """A run of lines that stands in two places; first and last line in each."""

  lines: int
  first: tuple[Path, int, int]
  second: tuple[Path, int, int]

  def __str__(self) -> str:
    places = (f"{path}:{start}-{end}" for path, start, end in (self.first, self.second))
    return f"{self.lines} lines: {' = '.join(places)}"


def _left_out(path: Path) -> set[int]:
  """Lines of docstrings and imports."""
  found: set[int] = set()
  for node in imports.statements(imports.tree(path)):
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    if docstring or isinstance(node, ast.Import | ast.ImportFrom):
      found |= {*range(node.lineno, (node.end_lineno or node.lineno) + 1)}
  return found


def _lines(path: Path) -> list[tuple[int, str]]:
  """(line, its tokens) of the lines that count."""
  text = path.read_text("utf-8")
  left_out = _left_out(path)
  found: dict[int, list[str]] = defaultdict(list)
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type not in _SPACE and token.start[0] not in left_out:
      literal = {tokenize.STRING: "''", tokenize.NUMBER: "0"}.get(token.type)
      found[token.start[0]].append(literal or token.string)
  code = {line: tokens for line, tokens in found.items() if any(t.isidentifier() for t in tokens)}
  return [(line, " ".join(tokens)) for line, tokens in sorted(code.items())]


def _runs(lines: dict[Path, list[tuple[int, str]]]) -> Iterator[Clone]:
  """Every run that cannot be longer, of two places that do not overlap."""
  places: dict[tuple[str, ...], list[tuple[Path, int]]] = defaultdict(list)
  for path, own in lines.items():
    for start in range(len(own) - LEAST + 1):
      places[tuple(text for _, text in own[start : start + LEAST])].append((path, start))
  seen: set[tuple[Path, int, Path, int]] = set()
  for group in places.values():
    for number, (one, i) in enumerate(group):
      for other, j in group[number + 1 :]:
        if (one, i, other, j) in seen or (one == other and abs(i - j) < LEAST):
          continue
        a, b = lines[one][i:], lines[other][j:]
        length = 0
        for (_, left), (_, right) in zip(a, b):
          if left != right or (one == other and i + length >= j):
            break
          seen.add((one, i + length, other, j + length))
          length += 1
        if length >= LEAST:
          first = (one, a[0][0], a[length - 1][0])
          yield Clone(length, first, (other, b[0][0], b[length - 1][0]))


def _overlap(one: tuple[Path, int, int], other: tuple[Path, int, int]) -> bool:
  return one[0] == other[0] and one[1] <= other[2] and other[1] <= one[2]


def find(paths: list[Path]) -> list[Clone]:
  """The clones of some files, longest first; what lies within a longer one is no other."""
  kept: list[Clone] = []
  for clone in sorted(_runs({path: _lines(path) for path in paths}), reverse=True):
    if not any(
      _overlap(clone.first, one.first) and _overlap(clone.second, one.second) for one in kept
    ):
      kept.append(clone)
  return kept
