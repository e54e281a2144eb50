"""FLOPs of a compiled program: those of its matrix products and convolutions.

XLA's own `cost_analysis` counts the body of a loop once; here it is multiplied by the trip count
that the compiler wrote beside the loop. A loop without one is an optional part of a round
(`protections.maxmin`); it counts once. Only products count, so that the rate can be compared with
the peak of a matrix product: `dot` and `convolution`, and on GPUs the calls of cuDNN (convolutions,
fused attention) and cuBLAS, which XLA's analysis takes for free.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from udp_jax.benchmark import hlo

_TARGET = re.compile(r'custom_call_target="([^"]*)"')


class Cost(NamedTuple):
  """FLOPs of a program.

  Attributes:
    total: FLOPs of the whole program, taking the most expensive branch of every conditional.
    parts: FLOPs of each top-level loop without a known trip count, in order of execution; loops
      that compute nothing are left out.
  """

  total: float
  parts: tuple[float, ...]


def count(text: str) -> Cost:
  """Counts the FLOPs of optimised HLO text (`jax.stages.Compiled.as_text()`).

  Raises:
    ValueError: the text has no entry computation.
  """
  program = hlo.parse(text)
  counter = Counter(program)
  parts = (counter.computation(body) for body in _parts(program, program.entry))
  return Cost(counter.computation(program.entry), tuple(flops for flops in parts if flops))


def _parts(program: hlo.Program, name: str) -> Iterator[str]:
  """Bodies of the loops without a known trip count that belong to no other loop."""
  for instruction in program.computations[name]:
    if instruction.operation == "while" and hlo.trip_count(program, instruction) is None:
      yield from instruction.called("body")
    elif instruction.operation == "call":
      for called in instruction.called("to_apply"):
        yield from _parts(program, called)


class Counter:
  """Counts FLOPs in one program, each computation once."""

  def __init__(self, program: hlo.Program):
    self._program = program
    self._totals: dict[str, float] = {}

  def computation(self, name: str) -> float:
    """Returns the FLOPs of one run of a computation, loops multiplied by their trip counts."""
    if name not in self._totals:
      body = self._program.computations[name]
      shapes = first_shapes(body)
      self._totals[name] = sum(self.instruction(each, shapes) for each in body)
    return self._totals[name]

  def instruction(self, instruction: hlo.Instruction, shapes: dict[str, list[int]]) -> float:
    """Returns the FLOPs of one instruction, with those of the computations that it calls.

    Args:
      instruction: the instruction.
      shapes: `first_shapes` of the computation that it belongs to.
    """
    operation = instruction.operation
    if operation == "dot":
      return _dot(instruction, shapes)
    if operation == "convolution":
      return _convolution(instruction, shapes)
    if operation == "custom-call":
      return _custom_call(instruction, shapes)
    if operation == "while":
      trips = hlo.trip_count(self._program, instruction)
      return (1 if trips is None else trips) * self._all(instruction.called("body"))
    if operation == "conditional":
      return max(self.computation(name) for name in instruction.branches)
    if operation in ("fusion", "call") or operation.endswith("-start"):
      return self._all(instruction.called("calls") or self._applied(instruction))
    return 0.0

  def _applied(self, instruction: hlo.Instruction) -> list[str]:
    # The function that a collective applies to two elements computes no products.
    return instruction.called("to_apply") if instruction.operation == "call" else []

  def _all(self, names: list[str]) -> float:
    return sum((self.computation(name) for name in names), 0.0)


def first_shapes(instructions: list[hlo.Instruction]) -> dict[str, list[int]]:
  """Returns the shape of each result; of a tuple, that of its first array."""
  return {one.name: one.arrays[0][1] if one.arrays else [] for one in instructions}


def custom_target(instruction: hlo.Instruction) -> str:
  """Returns the name of the function that a custom call calls; "" for other instructions."""
  found = _TARGET.search(instruction.line) if instruction.operation == "custom-call" else None
  return found[1] if found else ""


def _dot(instruction: hlo.Instruction, shapes: dict[str, list[int]]) -> float:
  left = shapes[instruction.operands[0]]
  contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.line)
  axes = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
  return 2.0 * math.prod(instruction.arrays[0][1]) * math.prod(left[axis] for axis in axes)


def _convolution(instruction: hlo.Instruction, shapes: dict[str, list[int]]) -> float:
  kernel = shapes[instruction.operands[1]]
  return _products(instruction, instruction.arrays[0][1], kernel)


def _products(instruction: hlo.Instruction, out: list[int], kernel: list[int]) -> float:
  """FLOPs of a convolution, forward or of a gradient, by its larger map `out` and its kernel."""
  labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.line)
  if labels is None:
    raise ValueError(f"{instruction.name} does not say which axes are its kernel's")
  return 2.0 * math.prod(out) * math.prod(kernel) / kernel[labels[1].index("o")]


def _custom_call(instruction: hlo.Instruction, shapes: dict[str, list[int]]) -> float:
  target = custom_target(instruction)
  operands = instruction.operands
  if target.startswith("__cudnn$conv"):
    result, first, second = instruction.arrays[0][1], shapes[operands[0]], shapes[operands[1]]
    # In every form the map of the forward convolution's outputs gives the number of products.
    if target.endswith("BackwardFilter"):
      return _products(instruction, second, result)
    if target.endswith("BackwardInput"):
      return _products(instruction, first, second)
    return _products(instruction, result, second)
  if target.startswith("__cublas$"):
    left = shapes[operands[0]]
    contracted = math.prod(left[axis] for axis in _axes(instruction, "lhs_contracting_dimensions"))
    return 2.0 * math.prod(instruction.arrays[0][1]) * contracted
  if target.startswith("__cudnn$fmha"):
    # Forward: logits and outputs; the gradient makes the logits again, and has four products.
    products = 5 if target.endswith("Backward") else 2
    # (B, heads, queries, keys), whatever the layout of the operands, whose channels are last.
    weights = math.prod(_axes(instruction, "dimensions"))
    return 2.0 * products * weights * shapes[operands[0]][-1]
  return 0.0


def _axes(instruction: hlo.Instruction, name: str) -> list[int]:
  """The first `"name":["1","2"]` of a library call's configuration."""
  found = re.search(rf'"{name}": ?\[([^\]]*)\]', instruction.line)
  return [int(axis) for axis in re.findall(r"\d+", found[1])] if found else []
