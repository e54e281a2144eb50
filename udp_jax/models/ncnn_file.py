"""Reads models in ncnn's format: a text file of layers, and a binary file of their weights.

The text has a magic number, the number of layers and blobs, and a line a layer:

  TYPE NAME INPUTS OUTPUTS input... output... id=value ...

An id of -23300 - n holds the array of field n, its length first. In the binary, weights follow in
the order of the layers, those of a convolution as a tag, the values and, without a tag, the bias:
tag 0 means float32, 0x01306B47 float16, filled up to whole groups of four bytes. Other kinds of
storage (8 bits, tables) and other layers with weights are refused: nothing here needs them. The
format is that of Tencent's ncnn (docs/developer-guide/param-and-model-file-structure.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from udp_jax.errors import BadDataError
from udp_jax.runtime import files

_MAGIC = "7767517"
_WEIGHTLESS = ("Input", "Split", "Concat", "Eltwise", "BinaryOp", "Interp")
_CONVOLUTION = "Convolution"
_FLOAT32, _FLOAT16 = 0, 0x01306B47
# Fields of a convolution.
_OUT, _KERNEL, _BIAS, _SIZE = 0, 1, 5, 6
_ARRAY = -23300


class Layer(NamedTuple):
  """A layer of a model.

  Attributes:
    kind: its type, such as "Convolution".
    name: its name.
    inputs: names of the blobs that it reads.
    outputs: names of the blobs that it writes.
    fields: its parameters by number; numbers, or tuples of them.
    kernel: a convolution's (out, in, height, width); None for other layers.
    bias: a convolution's (out,); zeros if it has none.
  """

  kind: str
  name: str
  inputs: tuple[str, ...]
  outputs: tuple[str, ...]
  fields: dict[int, Any]
  kernel: np.ndarray | None = None
  bias: np.ndarray | None = None


def read(
  param: str | Path, binary: str | Path, *, param_sha256: str, binary_sha256: str
) -> list[Layer]:
  """Reads a model's layers with their weights, in order.

  Args:
    param: the text file.
    binary: the file of weights.
    param_sha256, binary_sha256: expected hexadecimal digests; nothing is read unless they match.

  Raises:
    MissingDataError: a file does not exist.
    BadDataError: a digest differs, or the files hold what is not read here.
  """
  text = files.read_checked(param, param_sha256)
  weights = files.read_checked(binary, binary_sha256)
  try:
    return parse(text.decode("ascii"), weights)
  except BadDataError as error:
    raise BadDataError(f"{param}: {error}") from error
  except (ValueError, IndexError, KeyError, TypeError) as error:
    raise BadDataError(f"{param}: not a readable model of ncnn ({error})") from error


def parse(text: str, weights: bytes) -> list[Layer]:
  """Reads a model from the contents of its two files.

  Raises:
    BadDataError: they hold what is not read here, or do not fit each other.
    ValueError, IndexError, KeyError: the text is damaged.
  """
  lines = text.split("\n")
  if lines[0].strip() != _MAGIC:
    raise BadDataError("not a text file of an ncnn model")
  count = int(lines[1].split()[0])
  place, layers = 0, []
  for line in lines[2 : 2 + count]:
    layer = _line(line)
    if layer.kind == _CONVOLUTION:
      kernel, bias, place = _convolution(layer, weights, place)
      layer = layer._replace(kernel=kernel, bias=bias)
    elif layer.kind not in _WEIGHTLESS:
      raise BadDataError(f"layer {layer.name} is a {layer.kind}, which is not read here")
    layers.append(layer)
  if place != len(weights):
    raise BadDataError(f"the weights have {len(weights)} bytes, of which the layers use {place}")
  return layers


def _line(line: str) -> Layer:
  kind, name, inputs, outputs, *rest = line.split()
  middle = int(inputs)
  end = middle + int(outputs)
  fields: dict[int, Any] = {}
  for word in rest[end:]:
    number, _, value = word.partition("=")
    if int(number) <= _ARRAY:
      fields[_ARRAY - int(number)] = tuple(_number(v) for v in value.split(",")[1:])
    else:
      fields[int(number)] = _number(value)
  return Layer(kind, name, tuple(rest[:middle]), tuple(rest[middle:end]), fields)


def _number(word: str) -> int | float:
  return float(word) if set(word) & set(".eE") else int(word)


def _convolution(layer: Layer, data: bytes, place: int) -> tuple[np.ndarray, np.ndarray, int]:
  """Returns the kernel and the bias of a convolution, and where the next weights begin."""
  out, side, size = layer.fields[_OUT], layer.fields[_KERNEL], layer.fields[_SIZE]
  tag = int(np.frombuffer(data, "<u4", 1, place)[0])
  if tag not in (_FLOAT32, _FLOAT16):
    raise BadDataError(f"layer {layer.name} is stored in a way that is not read here ({tag:#x})")
  dtype = np.dtype("<f4" if tag == _FLOAT32 else "<f2")
  values = np.frombuffer(data, dtype, size, place + 4)
  place += 4 + -(-size * dtype.itemsize // 4) * 4
  bias = np.zeros(out, np.float32)
  if layer.fields.get(_BIAS):
    bias = np.frombuffer(data, "<f4", out, place).copy()
    place += 4 * out
  return values.reshape(out, -1, side, side).astype(np.float32), bias, place
