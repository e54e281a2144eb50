"""Reads the text of a compiled program: its computations, loops and collectives."""

from __future__ import annotations

import math
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
_NAME = re.compile(r"%([\w.\-]+)")
_PARENTHESIS = re.compile(r"[()]")


class Instruction(NamedTuple):
  """One line of a computation: its type and operation as text, and the whole line."""

  name: str
  root: bool
  type: str
  operation: str
  line: str

  @property
  def operands(self) -> list[str]:
    """Names of the operands, in order; empty for a constant or a parameter."""
    start = self.line.index(f"{self.operation}(", self.line.index(" = ")) + len(self.operation)
    depth = 0
    for found in _PARENTHESIS.finditer(self.line, start):
      depth += 1 if found[0] == "(" else -1
      if not depth:
        return _NAME.findall(self.line, start, found.start())
    raise ValueError(f"the operands of {self.name} do not end")

  @property
  def arrays(self) -> list[tuple[str, list[int]]]:
    """(dtype, shape) of each array of the result; a tuple's in order."""
    return [
      (dtype, [int(length) for length in shape.split(",") if length])
      for dtype, shape in _ARRAY.findall(self.type)
      if dtype != "token"
    ]

  @property
  def bytes(self) -> int:
    """Size of the result, all arrays of a tuple together."""
    return sum(num_bytes(dtype, shape) for dtype, shape in self.arrays)

  def called(self, attribute: str) -> list[str]:
    """Names of the computations in `attribute=%a` or `attribute={%a, %b}`."""
    found = re.search(rf"\b{attribute}=(?:\{{([^}}]*)\}}|%?([\w.\-]+))", self.line)
    if found is None:
      return []
    return [name.strip().lstrip("%") for name in (found[1] or found[2]).split(",")]

  @property
  def branches(self) -> list[str]:
    """Names of a conditional's computations."""
    return [
      name
      for attribute in ("branch_computations", "true_computation", "false_computation")
      for name in self.called(attribute)
    ]


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
    raise ValueError("the text holds no program: it has no entry computation")
  return Program(computations, entry)


def trip_count(program: Program, loop: Instruction) -> int | None:
  """Returns the number of iterations of a `while`, or None.

  Either the compiler states it, or the condition is `counter < constant` and the counter counts up
  from 0 by 1, as in the loops of `lax.scan`.
  """
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.line)
  if known:
    return int(known[1])
  (condition,) = loop.called("condition")
  body = program.computations[condition]
  root = next(instruction for instruction in body if instruction.root)
  constants = _constants(body)
  if root.operation == "fusion":
    (called,) = root.called("calls")
    inner = program.computations[called]
    operands = root.operands
    for instruction in inner:
      number = re.search(r"\bparameter\((\d+)\)", instruction.line)
      if number and operands[int(number[1])] in constants:
        constants[instruction.name] = constants[operands[int(number[1])]]
    constants |= _constants(inner)
    root = next(instruction for instruction in inner if instruction.root)
  if root.operation != "compare" or "direction=LT" not in root.line:
    return None
  limit = root.operands[1]
  return constants.get(limit)


def _constants(instructions: Iterable[Instruction]) -> dict[str, int]:
  found = {}
  for instruction in instructions:
    value = re.search(r"\bconstant\((-?\d+)\)", instruction.line)
    if instruction.operation == "constant" and value:
      found[instruction.name] = int(value[1])
  return found


def _runs(program: Program) -> tuple[dict[str, int], list[Loop]]:
  """Counts how often each computation runs, and finds the loops. Branches count as taken."""
  runs: dict[str, int] = {}
  loops: list[Loop] = []

  def visit(name: str, times: int) -> None:
    runs[name] = runs.get(name, 0) + times
    for instruction in program.computations.get(name, ()):
      if instruction.operation == "while":
        count = trip_count(program, instruction)
        (body,) = instruction.called("body")
        loops.append(Loop(body, count, times * (1 if count is None else count)))
        visit(body, loops[-1].runs)
      elif instruction.operation == "conditional":
        for branch in instruction.branches:
          visit(branch, times)
      elif not instruction.operation.endswith(("-done", "-update")):
        # The function that a reduction applies to two elements contains no collectives.
        inner = instruction.called("calls") + instruction.called("called_computations")
        inner += instruction.called("to_apply") if instruction.operation == "call" else []
        for called in inner:
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
      arrays = results(instruction)
      size = sum(num_bytes(dtype, shape) for dtype, shape in arrays)
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
    for called in instruction.called("calls")
  }
  found = [
    int(estimate[1])
    for name in runs
    if name not in fused
    for instruction in program.computations.get(name, ())
    if (estimate := re.search(r'"estimated_cycles":"(\d+)"', instruction.line))
  ]
  return sum(found) if found else None


def results(instruction: Instruction) -> list[tuple[str, list[int]]]:
  """Returns (dtype, shape) of what an instruction makes; of an asynchronous start, once."""
  kind, arrays = instruction.operation.removesuffix("-start"), instruction.arrays
  if kind == instruction.operation or kind == "all-reduce":
    return arrays
  if kind == "collective-permute":
    return arrays[1:2]
  return arrays[len(arrays) // 2 :]  # Most kinds return (operands, results, contexts).


def num_bytes(dtype: str, shape: Iterable[int]) -> int:
  """Returns the size of an array; a boolean takes a byte."""
  bits = re.search(r"\d+", dtype)
  return (max(1, int(bits[0]) // 8) if bits else 1) * math.prod(shape)


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
