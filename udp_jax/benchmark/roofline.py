"""Kernels of a program compiled for a GPU, and the least time that they can take.

The optimised program says which kernels run, what each reads and writes, and how often. A kernel
takes at least the time of its products at the rate that the GPU reaches, or the time to move its
bytes, whichever is longer, and a launch. The sum is a lower bound of a program whose kernels run
one after the other: there is no GPU in it, no cache, no overlap, and no choice of tiles. XLA's own
analysis counts loops once and takes library calls for free.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from udp_jax.benchmark import flops, hlo

# Instructions that run no kernel.
_FREE = frozenset(
  "parameter constant tuple get-tuple-element bitcast after-all add-dependency opt-barrier "
  "partition-id replica-id".split()
)
_SLICES = ("slice", "dynamic-slice", "gather")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_FUSION_KIND = re.compile(r'"kind":"(__\w+)"')


class Reach(NamedTuple):
  """What large kernels reach on a GPU.

  Attributes:
    matmul: FLOPs per second of a bfloat16 product; infinite where it is not known. Products of
      float32 take at least twice as long (TF32) or more, which bounds of such programs leave out.
    copy: bytes per second, read and written, of a copy.
    launch: seconds that each kernel takes besides its work.
  """

  matmul: float
  copy: float
  launch: float = 2.5e-6


class Kernel(NamedTuple):
  """One kernel of a program.

  Attributes:
    name: the instruction's name.
    kind: the library function, the kind of fusion, or the operation.
    flops: FLOPs of its products.
    bytes: bytes that it reads and writes, each array once.
    seconds: least time of one run.
    op_name: where it comes from in the traced function.
    runs: how often one run of the program runs it.
  """

  name: str
  kind: str
  flops: float
  bytes: float
  seconds: float
  op_name: str
  runs: int


class Bound(NamedTuple):
  """The least cost of a program.

  Attributes:
    kernels: number of kernels that run.
    tflop: FLOPs of all products, 10^12.
    gigabytes: bytes read and written, 10^9.
    seconds: least time.
    parts: {"products", "bytes", "launches"}: seconds of the kernels that are bound by products,
      of those bound by bytes, and of all launches; their sum is `seconds`.
  """

  kernels: int
  tflop: float
  gigabytes: float
  seconds: float
  parts: dict[str, float]


def kernels(program: hlo.Program, reach: Reach) -> list[Kernel]:
  """Returns every kernel of a program, in order.

  Loops of unknown length count as one iteration; of a conditional only the branch that takes
  longest counts, and of an asynchronous pair only the start.
  """
  return list(_Reader(program, reach).kernels(program.entry, 1))


def bound(found: Iterable[Kernel], reach: Reach) -> Bound:
  """Returns the sum over `kernels`."""
  total = {"kernels": 0, "flops": 0.0, "bytes": 0.0}
  parts = {"products": 0.0, "bytes": 0.0, "launches": 0.0}
  for kernel in found:
    total["kernels"] += kernel.runs
    total["flops"] += kernel.runs * kernel.flops
    total["bytes"] += kernel.runs * kernel.bytes
    products, moved = kernel.flops / reach.matmul, kernel.bytes / reach.copy
    parts["products" if products > moved else "bytes"] += kernel.runs * max(products, moved)
    parts["launches"] += kernel.runs * reach.launch
  return Bound(
    int(total["kernels"]), total["flops"] / 1e12, total["bytes"] / 1e9, sum(parts.values()), parts
  )


def largest(found: Iterable[Kernel], number: int) -> list[Kernel]:
  """Returns the `number` kernels that take longest, all their runs together."""
  return sorted(found, key=lambda kernel: -kernel.runs * kernel.seconds)[:number]


class _Reader:
  """Reads kernels from one program."""

  def __init__(self, program: hlo.Program, reach: Reach):
    self._program = program
    self._reach = reach
    self._counter = flops.Counter(program)

  def kernels(self, name: str, runs: int) -> Iterator[Kernel]:
    """Yields the kernels of a computation that runs `runs` times."""
    body = self._program.computations[name]
    shapes = flops.first_shapes(body)
    sizes = {each.name: each.bytes for each in body}
    for instruction in body:
      operation = instruction.operation
      if operation in _FREE or operation.endswith(("-done", "-update")):
        continue
      if operation == "while":
        trips = hlo.trip_count(self._program, instruction)
        (inner,) = instruction.called("body")
        yield from self.kernels(inner, runs * (1 if trips is None else trips))
      elif operation == "conditional":
        yield from self._dearest(instruction.branches, runs)
      elif operation == "call":
        yield from self._all(instruction.called("to_apply"), runs)
      elif operation == "async-start":
        yield from self._all(instruction.called("calls"), runs)
      else:
        products = self._counter.instruction(instruction, shapes)
        yield self._kernel(instruction, products, self._moved(instruction, sizes), runs)

  def _all(self, names: list[str], runs: int) -> Iterator[Kernel]:
    for name in names:
      yield from self.kernels(name, runs)

  def _dearest(self, branches: list[str], runs: int) -> list[Kernel]:
    found = [list(self.kernels(branch, runs)) for branch in branches]
    return max(found, key=lambda branch: sum(one.runs * one.seconds for one in branch))

  def _kernel(self, instruction: hlo.Instruction, products: float, moved: float, runs: int):
    fusion, op_name = _FUSION_KIND.search(instruction.line), _OP_NAME.search(instruction.line)
    kind = flops.custom_target(instruction) or (fusion[1] if fusion else instruction.operation)
    seconds = max(products / self._reach.matmul, moved / self._reach.copy) + self._reach.launch
    where = op_name[1] if op_name else ""
    return Kernel(instruction.name, kind, products, moved, seconds, where, runs)

  def _moved(self, instruction: hlo.Instruction, sizes: dict[str, int]) -> float:
    """Returns the bytes that an instruction reads and writes."""
    operation, operands = instruction.operation, instruction.operands
    read = sum(sizes[name] for name in dict.fromkeys(operands))
    if operation == "fusion":
      return self._fused(instruction, sizes)
    if operation in _SLICES:
      return 2 * instruction.bytes + sum(sizes[name] for name in operands[1:])
    if operation == "dynamic-update-slice":  # In place: XLA would copy the array first otherwise.
      return 2 * sizes[operands[1]]
    if operation == "copy-start":
      return 2 * read
    if operation == "custom-call":
      arrays = instruction.arrays
      # A library's scratch memory is written too, but how much of it is not known.
      if len(arrays) > 1 and arrays[-1][0] in ("s8", "u8") and len(arrays[-1][1]) == 1:
        arrays = arrays[:-1]
      return read + sum(hlo.num_bytes(dtype, shape) for dtype, shape in arrays)
    return read + sum(hlo.num_bytes(dtype, shape) for dtype, shape in hlo.results(instruction))

  def _fused(self, instruction: hlo.Instruction, sizes: dict[str, int]) -> float:
    """Bytes of a fusion, which reads only a part of what it only slices, and updates in place."""
    (name,) = instruction.called("calls")
    fused = _Fused(self._program.computations[name])
    read = [
      fused.read(number, sizes[operand]) for number, operand in enumerate(instruction.operands)
    ]
    return sum(read) + fused.written()


class _Fused:
  """The computation of a fusion."""

  def __init__(self, body: list[hlo.Instruction]):
    self._named = {each.name: each for each in body}
    self._root = next(each for each in body if each.root)
    self._users: dict[str, list[hlo.Instruction]] = {}
    self._parameters: dict[int, str] = {}
    for each in body:
      for operand in dict.fromkeys(each.operands):
        self._users.setdefault(operand, []).append(each)
      if each.operation == "parameter":
        number = re.search(r"\bparameter\((\d+)\)", each.line)
        assert number is not None
        self._parameters[int(number[1])] = each.name

  def read(self, number: int, size: int) -> int:
    """Returns how many of its `size` bytes are read of operand `number`."""
    part = self._read(self._parameters[number])
    return size if part is None else min(size, part)

  def _read(self, name: str) -> int | None:
    """Bytes read of a value of which only slices are used; None for all of it."""
    total = 0
    for user in self._users.get(name, []):
      first = user.operands[0] == name
      if user.operation == "bitcast":
        part = self._read(user.name)
      elif user.operation in _SLICES and first:
        part = user.bytes
      elif user.operation == "dynamic-update-slice" and first and self._in_place(user):
        part = 0
      else:
        part = None
      if part is None:
        return None
      total += part
    return total

  def written(self) -> int:
    """Returns the bytes that are written."""
    roots = [self._root]
    if self._root.operation == "tuple":
      roots = [self._named[name] for name in self._root.operands]
    total = 0
    for root in roots:
      made = self._behind_bitcasts(root)
      update = made.operation == "dynamic-update-slice" and self._in_place(made)
      total += self._named[made.operands[1]].bytes if update else root.bytes
    return total

  def _in_place(self, update: hlo.Instruction) -> bool:
    """Whether an update changes an operand of the fusion, of which the rest stays as it is."""
    return self._behind_bitcasts(self._named[update.operands[0]]).operation == "parameter"

  def _behind_bitcasts(self, instruction: hlo.Instruction) -> hlo.Instruction:
    while instruction.operation == "bitcast":
      instruction = self._named[instruction.operands[0]]
    return instruction
