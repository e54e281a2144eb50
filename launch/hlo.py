"""Reads loops and collectives from the text of a compiled program."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

KINDS = (
  "all-reduce",
  "all-gather",
  "all-to-all",
  "ragged-all-to-all",
  "collective-broadcast",
  "collective-permute",
  "reduce-scatter",
)
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
# The type may hold spaces and comments; the operation is the first word before a parenthesis.
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r"(?:^|[\s)}\]])([a-z][a-z\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]")


class Instruction(NamedTuple):
  """One line of a computation: its type and operation as text, and the whole line."""

  name: str
  root: bool
  type: str
  operation: str
  line: str


class Loop(NamedTuple):
  """A `while` loop.

  Attributes:
    body: name of its computation.
    trip_count: number of iterations per entry; None if the text does not show it.
    runs: iterations in one run of the program, including outer loops; unknown counts are 1.
  """

  body: str
  trip_count: int | None
  runs: int


class Collective(NamedTuple):
  """A collective; an asynchronous pair counts as one.

  Attributes:
    kind: one of `KINDS`.
    dtypes: element types.
    arrays: number of arrays that it moves at once.
    bytes: size of all arrays together, on one device.
    runs: executions in one run of the program; loops of unknown length count as one iteration.
  """

  kind: str
  dtypes: tuple[str, ...]
  arrays: int
  bytes: int
  runs: int


class Program(NamedTuple):
  """A parsed program: its computations by name, and the name of its entry."""

  computations: dict[str, list[Instruction]]
  entry: str


def parse(text: str) -> Program:
  """Splits optimised HLO text (`jax.stages.Compiled.as_text()`) into computations.

  Raises:
    ValueError: the text is not HLO.
  """
  computations: dict[str, list[Instruction]] = {}
  entry, current = None, None
  for line in text.splitlines():
    if header := _HEADER.match(line):
      current = computations.setdefault(header[2], [])
      entry = header[2] if header[1] else entry
    elif line.startswith("}"):
      current = None
    elif current is not None and (found := _INSTRUCTION.match(line)):
      # Operands contain parentheses too, metadata anything: the type ends at the first operation.
      operation = _OPERATION.search(found[3])
      if operation:
        before = found[3][: operation.start(1)]
        current.append(Instruction(found[2], bool(found[1]), before, operation[1], line))
  if entry is None:
    raise ValueError("the text holds no program")
  return Program(computations, entry)


def _named(line: str, attribute: str) -> list[str]:
  """Names of the computations in `attribute=%a` or `attribute={%a, %b}`."""
  found = re.search(rf"\b{attribute}=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", line)
  if found is None:
    return []
  return [name.strip().lstrip("%") for name in (found[1] or found[2]).split(",")]


def trip_count(program: Program, loop: Instruction) -> int | None:
  """Returns the number of iterations of a `while`, or None.

  Either the compiler states it, or the condition is `counter < constant` and the counter counts up
  from 0 by 1, as in the loops of `lax.scan`.
  """
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.line)
  if known:
    return int(known[1])
  (condition,) = _named(loop.line, "condition")
  body = program.computations[condition]
  root = next(instruction for instruction in body if instruction.root)
  constants = _constants(body)
  if root.operation == "fusion":
    (called,) = _named(root.line, "calls")
    inner = program.computations[called]
    operands = _operands(root.line, "fusion")
    for instruction in inner:
      number = re.search(r"\bparameter\((\d+)\)", instruction.line)
      if number and operands[int(number[1])] in constants:
        constants[instruction.name] = constants[operands[int(number[1])]]
    constants |= _constants(inner)
    root = next(instruction for instruction in inner if instruction.root)
  if root.operation != "compare" or "direction=LT" not in root.line:
    return None
  limit = _operands(root.line, "compare")[1]
  return constants.get(limit)


def _constants(instructions: Iterable[Instruction]) -> dict[str, int]:
  found = {}
  for instruction in instructions:
    value = re.search(r"\bconstant\((-?\d+)\)", instruction.line)
    if instruction.operation == "constant" and value:
      found[instruction.name] = int(value[1])
  return found


def _operands(line: str, operation: str) -> list[str]:
  inside = line.split(f"{operation}(", 1)[1].split(")", 1)[0]
  return [word.split()[-1].lstrip("%") for word in inside.split(",")]


def _runs(program: Program) -> tuple[dict[str, int], list[Loop]]:
  """Counts how often each computation runs, and finds the loops. Branches count as taken."""
  runs: dict[str, int] = {}
  loops: list[Loop] = []

  def visit(name: str, times: int) -> None:
    runs[name] = runs.get(name, 0) + times
    for instruction in program.computations.get(name, ()):
      line = instruction.line
      if instruction.operation == "while":
        count = trip_count(program, instruction)
        (body,) = _named(line, "body")
        loops.append(Loop(body, count, times * (1 if count is None else count)))
        visit(body, loops[-1].runs)
      elif instruction.operation == "conditional":
        branches = _named(line, "branch_computations")
        branches += _named(line, "true_computation") + _named(line, "false_computation")
        for branch in branches:
          visit(branch, times)
      elif not instruction.operation.endswith(("-done", "-update")):
        # The function that a reduction applies to two elements contains no collectives.
        for called in _named(line, "calls") + _named(line, "called_computations"):
          visit(called, times)

  visit(program.entry, 1)
  return runs, loops


def loops(program: Program) -> list[Loop]:
  """Returns every `while`, outer loops first."""
  return _runs(program)[1]


def collectives(program: Program) -> list[Collective]:
  """Returns every collective that the program may execute."""
  runs, _ = _runs(program)
  found = []
  for name, times in runs.items():
    for instruction in program.computations.get(name, ()):
      kind = instruction.operation.removesuffix("-start")
      if kind not in KINDS:
        continue
      arrays = _ARRAY.findall(instruction.type)
      if instruction.operation.endswith("-start"):
        arrays = _results(kind, arrays)
      size = sum(_bytes(dtype, shape) for dtype, shape in arrays)
      dtypes = tuple(sorted({dtype for dtype, _ in arrays}))
      found.append(Collective(kind, dtypes, len(arrays), size, times))
  return found


def cycles(program: Program) -> int | None:
  """Returns the TPU compiler's estimate for its schedule, counting the body of a loop once.

  None if the text has no estimates (other compilers).
  """
  runs, _ = _runs(program)
  fused = {
    called
    for instructions in program.computations.values()
    for instruction in instructions
    if instruction.operation == "fusion"
    for called in _named(instruction.line, "calls")
  }
  found = [
    int(estimate[1])
    for name in runs
    if name not in fused
    for instruction in program.computations.get(name, ())
    if (estimate := re.search(r'"estimated_cycles":"(\d+)"', instruction.line))
  ]
  return sum(found) if found else None


def _results(kind: str, arrays: list[tuple[str, str]]) -> list[tuple[str, str]]:
  """Returns the results of a `-start`; most kinds return (operands, results, contexts)."""
  if kind == "all-reduce":
    return arrays
  if kind == "collective-permute":
    return arrays[1:2]
  return arrays[len(arrays) // 2 :]


def _bytes(dtype: str, shape: str) -> int:
  bits = re.search(r"\d+", dtype)
  size = max(1, int(bits[0]) // 8) if bits else 1  # pred takes a byte.
  for length in filter(None, shape.split(",")):
    size *= int(length)
  return size


def summary(found: Iterable[Collective]) -> dict[str, dict[str, Any]]:
  """For each kind: how many the program contains, how many one run executes, and their bytes."""
  table: dict[str, dict[str, Any]] = {}
  for one in found:
    row = table.setdefault(one.kind, {"in_program": 0, "executed": 0, "bytes": 0, "dtypes": []})
    row["in_program"] += 1
    row["executed"] += one.runs
    row["bytes"] += one.runs * one.bytes
    row["dtypes"] = sorted({*row["dtypes"], *one.dtypes})
  return table
