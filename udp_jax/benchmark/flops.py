"""FLOPs of a compiled program: those of its matrix products and convolutions.

XLA's own `cost_analysis` counts the body of a loop once; here it is multiplied by the trip count
that the compiler wrote beside the loop. A loop without one is an optional part of a round
(`protections.maxmin`); it counts once. Only `dot` and `convolution` count, so that the rate can be
compared with the peak of a matrix product.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_SHAPE = re.compile(r"\w+\[([\d,]*)\]")
_CALLEES = re.compile(r"\b(?:calls|to_apply)=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Cost(NamedTuple):
  """FLOPs of a program.

  Attributes:
    total: FLOPs of the whole program, taking the most expensive branch of every conditional.
    parts: FLOPs of each top-level loop without a known trip count, in order of execution; loops
      that compute nothing are left out.
  """

  total: float
  parts: tuple[float, ...]


def count(hlo: str) -> Cost:
  """Counts the FLOPs of optimised HLO text (`jax.stages.Compiled.as_text()`).

  Raises:
    ValueError: the text has no entry computation.
  """
  computations: dict[str, list[tuple[str, str]]] = {}
  entry, current = None, None
  for line in hlo.splitlines():
    if current is None and (head := _HEAD.match(line)) and "=" not in line.split("(")[0]:
      current = computations.setdefault(head.group(2), [])
      entry = head.group(2) if head.group(1) else entry
    elif line.startswith("}"):
      current = None
    elif current is not None and (found := _INSTRUCTION.match(line)):
      current.append((found.group(1), found.group(2)))
  if entry is None:
    raise ValueError("not a module of HLO: it has no entry computation")
  totals: dict[str, float] = {}

  def total(name: str) -> float:
    if name not in totals:
      totals[name] = sum(flops for _, flops in _costs(computations[name], total))
    return totals[name]

  whole = total(entry)
  parts = [flops for op, flops in _costs(computations[entry], total) if op == "part"]
  return Cost(whole, tuple(flops for flops in parts if flops))


def _costs(instructions: list[tuple[str, str]], total) -> Iterator[tuple[str, float]]:
  """Yields (operation, FLOPs) of each instruction."""
  shapes = {name: _dimensions(text) for name, text in instructions}
  for _, text in instructions:
    op, arguments = _operation(text)
    if op == "dot":
      left = shapes[arguments[0]]
      contracted = [int(i) for i in _braces(text, "lhs_contracting_dims") if i]
      yield op, 2.0 * math.prod(_dimensions(text)) * math.prod(left[i] for i in contracted)
    elif op == "convolution":
      kernel = shapes[arguments[1]]
      labels = re.search(r"dim_labels=\w+_(\w+)->", text)
      assert labels is not None
      outputs = kernel[labels.group(1).index("o")]
      yield op, 2.0 * math.prod(_dimensions(text)) * math.prod(kernel) / outputs
    elif op == "while":
      body = re.search(r"body=%?([\w.\-]+)", text)
      trips = _TRIPS.search(text)
      assert body is not None
      inner = total(body.group(1))
      yield ("part", inner) if trips is None else (op, inner * int(trips.group(1)))
    elif op == "conditional":
      names = _braces(text, "branch_computations") or re.findall(
        r"(?:true|false)_computation=%?([\w.\-]+)", text
      )
      yield op, max(total(name.strip(" %")) for name in names)
    elif op in ("fusion", "call", "async-start"):
      yield op, sum(total(name) for name in _CALLEES.findall(text))
    else:
      yield op, 0.0


def _operation(text: str) -> tuple[str, list[str]]:
  """Parses `TYPE op(operands), attributes`: the operation and all names, operands first."""
  if text.startswith("("):
    depth = itertools.accumulate((letter == "(") - (letter == ")") for letter in text)
    text = text[list(depth).index(0) + 1 :].strip()
  else:
    text = text.partition(" ")[2]
  op, _, rest = text.partition("(")
  return op.strip(), re.findall(r"%([\w.\-]+)", rest)


def _dimensions(text: str) -> list[int]:
  found = _SHAPE.search(text)
  return [int(n) for n in found.group(1).split(",") if n] if found else []


def _braces(text: str, name: str) -> list[str]:
  found = re.search(rf"{name}=\{{([^}}]*)\}}", text)
  return found.group(1).split(",") if found else []
