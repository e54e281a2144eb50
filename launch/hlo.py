"""What the text of a compiled program tells: its loops and its collectives."""

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
  """A `while`: name of its body, iterations (None: not to be read from the text), and runs.

  Attributes:
    body: name of the computation.
    trip_count: iterations each time that it is entered.
    runs: iterations in one run of the program, surrounding loops included; unknown ones count once.
  """

  body: str
  trip_count: int | None
  runs: int


class Collective(NamedTuple):
  """A collective, an asynchronous one counted once.

  Attributes:
    kind: one of `KINDS`.
    dtypes: element types.
    arrays: how many arrays it moves at once.
    bytes: of all arrays together, on one device.
    runs: executions in one run of the program, of loops whose length is unknown one iteration.
  """

  kind: str
  dtypes: tuple[str, ...]
  arrays: int
  bytes: int
  runs: int


class Program(NamedTuple):
  """A parsed program: computations by name, and which of them is entered first."""

  computations: dict[str, list[Instruction]]
  entry: str


def parse(text: str) -> Program:
  """Splits the text of `compiled.as_text()` into computations. Raises ValueError if it is none."""
  computations: dict[str, list[Instruction]] = {}
  entry, current = None, None
  for line in text.splitlines():
    if header := _HEADER.match(line):
      current = computations.setdefault(header[2], [])
      entry = header[2] if header[1] else entry
    elif line.startswith("}"):
      current = None
    elif current is not None and (found := _INSTRUCTION.match(line)):
      # Operands hold parentheses too, metadata anything: the type ends at the first operation.
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
  """Iterations of a `while`, or None.

  Either the compiler says it, or the condition is `counter < constant` and the counter starts at 0
  and goes up by 1, which is what `lax.scan` makes.
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
  """How often each computation runs, and the loops. A branch counts as taken."""
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
        # What a reduction applies to two elements holds no collectives.
        for called in _named(line, "calls") + _named(line, "called_computations"):
          visit(called, times)

  visit(program.entry, 1)
  return runs, loops


def loops(program: Program) -> list[Loop]:
  """Every `while`, outer ones first."""
  return _runs(program)[1]


def collectives(program: Program) -> list[Collective]:
  """Every collective that the program may execute."""
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
  """The TPU compiler's estimate for the schedule that it made, the body of a loop once.

  None where the text has no estimates (other compilers).
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
  """Of what a `-start` gives, the results: most kinds give (operands, results, contexts)."""
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
  """By kind: how many stand in the program, how many one run executes, and the bytes of these."""
  table: dict[str, dict[str, Any]] = {}
  for one in found:
    row = table.setdefault(one.kind, {"in_program": 0, "executed": 0, "bytes": 0, "dtypes": []})
    row["in_program"] += 1
    row["executed"] += one.runs
    row["bytes"] += one.runs * one.bytes
    row["dtypes"] = sorted({*row["dtypes"], *one.dtypes})
  return table
