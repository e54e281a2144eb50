"""FID's Inception-v3 for inference, from a weight file that the user provides.

The network of Heusel et al. (2017, https://arxiv.org/abs/1706.08500) is TensorFlow's graph of
2015-12-05. Its PyTorch port in pytorch-fid keeps torchvision's names. It differs from torchvision's
Inception-v3 in its weights and in three ways that this module follows: 1008 classes, average pools
that do not count the padding, and a max pool in place of the last block's average pool.

Loading folds every BatchNorm into the convolution before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax import lax

from udp_jax.errors import BadDataError, MissingDataError
from udp_jax.runtime import files

FEATURE_DIM = 2048
INPUT_SIZE = 299

_BATCH_NORM_EPSILON = 1e-3
_CLASSIFIER = {"fc.weight": (1008, FEATURE_DIM), "fc.bias": (1008,)}
_HOW_TO_GET = (
  "download pt_inception-2015-12-05-6726825d.pth from the releases of "
  "github.com/mseitzer/pytorch-fid and convert it on a machine with PyTorch: "
  'python -c "import torch, safetensors.torch as s; s.save_file(torch.load('
  "'pt_inception-2015-12-05-6726825d.pth', weights_only=True), 'inception_v3_fid.safetensors')\""
)

Shape = tuple[int, int, int, int]


class Conv(NamedTuple):
  """A convolution (HWIO) with the following BatchNorm folded in."""

  kernel: jax.Array
  bias: jax.Array


Params = dict[str, Conv]


def conv_shapes() -> dict[str, Shape]:
  """Returns the shapes (out, in, height, width) of the 94 convolutions by name."""
  shapes: dict[str, Shape] = {
    "Conv2d_1a_3x3": (32, 3, 3, 3),
    "Conv2d_2a_3x3": (32, 32, 3, 3),
    "Conv2d_2b_3x3": (64, 32, 3, 3),
    "Conv2d_3b_1x1": (80, 64, 1, 1),
    "Conv2d_4a_3x3": (192, 80, 3, 3),
  }
  blocks = {
    "Mixed_5b": _shapes_a(192, 32),
    "Mixed_5c": _shapes_a(256, 64),
    "Mixed_5d": _shapes_a(288, 64),
    "Mixed_6a": _shapes_b(288),
    "Mixed_6b": _shapes_c(768, 128),
    "Mixed_6c": _shapes_c(768, 160),
    "Mixed_6d": _shapes_c(768, 160),
    "Mixed_6e": _shapes_c(768, 192),
    "Mixed_7a": _shapes_d(768),
    "Mixed_7b": _shapes_e(1280),
    "Mixed_7c": _shapes_e(2048),
  }
  for block, branches in blocks.items():
    shapes |= {f"{block}.{branch}": shape for branch, shape in branches.items()}
  return shapes


def tensor_shapes() -> dict[str, tuple[int, ...]]:
  """Returns the shapes of all tensors that a weight file must hold, by name."""
  shapes: dict[str, tuple[int, ...]] = {}
  for name, shape in conv_shapes().items():
    shapes[f"{name}.conv.weight"] = shape
    for field in ("weight", "bias", "running_mean", "running_var"):
      shapes[f"{name}.bn.{field}"] = shape[:1]
  return shapes | _CLASSIFIER


def load(path: str | Path | None) -> Params:
  """Reads the weights from a safetensors file with the names of pytorch-fid's state dict.

  Raises:
    MissingDataError: no file is named, or it does not exist; the message says how to get it.
    BadDataError: the file is not in safetensors format, or a tensor is missing, unknown or
      misshapen.
  """
  if path is None:
    raise MissingDataError(f"inception_v3 needs a weight file and none was named: {_HOW_TO_GET}")
  path = Path(path)
  if not path.is_file():
    raise MissingDataError(
      f"the Inception-v3 weights are missing: looked for {path}; {_HOW_TO_GET}"
    )
  files.refuse_lfs_pointer(path)
  try:
    tensors = safetensors.numpy.load_file(path)
  except (safetensors.SafetensorError, OSError) as error:
    raise BadDataError(
      f"{path}: not a readable safetensors file ({error}); {_HOW_TO_GET}"
    ) from error
  try:
    return params_from_tensors(tensors)
  except BadDataError as error:
    raise BadDataError(f"{path}: {error}") from error


def params_from_tensors(tensors: Mapping[str, np.ndarray]) -> Params:
  """Folds the BatchNorms of a state dict (shapes as in `tensor_shapes`) into its convolutions.

  The features do not use the classifier, but it is required: its 1008 classes distinguish FID's
  weights from torchvision's, which fit otherwise and would give a distance that is not FID.

  Raises:
    BadDataError: a tensor is missing, unknown or has another shape.
  """
  expected = tensor_shapes()
  for name, shape in expected.items():
    if name not in tensors:
      raise BadDataError(f"FID Inception-v3 weights: tensor {name} {shape} is missing")
    if tensors[name].shape != shape:
      raise BadDataError(
        f"FID Inception-v3 weights: tensor {name} is {tensors[name].shape}, expected {shape}"
      )
  for name in tensors:
    if name not in expected and not name.endswith(".num_batches_tracked"):
      raise BadDataError(f"FID Inception-v3 weights: tensor {name} has no place in the network")
  return {name: _fold(tensors, name) for name in conv_shapes()}


def features(params: Params, images: jax.Array) -> jax.Array:
  """Returns FID's pool3 features.

  Images are resized to 299 x 299 as pytorch-fid does (bilinear, half-pixel centres, no
  antialiasing), which differs from TensorFlow's legacy resize in the last digits.

  Args:
    params: result of `load`.
    images: (B, H, W, 3) in [0, 1], of any size.

  Returns:
    (B, 2048) float32.
  """
  shape = (images.shape[0], INPUT_SIZE, INPUT_SIZE, images.shape[3])
  x = jax.image.resize(images, shape, "bilinear", antialias=False)
  x = 2.0 * x - 1.0
  x = _conv(params, "Conv2d_1a_3x3", x, 2, "VALID")
  x = _conv(params, "Conv2d_2a_3x3", x, 1, "VALID")
  x = _conv(params, "Conv2d_2b_3x3", x)
  x = _max_pool(x, 2, "VALID")
  x = _conv(params, "Conv2d_3b_1x1", x)
  x = _conv(params, "Conv2d_4a_3x3", x, 1, "VALID")
  x = _max_pool(x, 2, "VALID")
  for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
    x = _block_a(params, name, x)
  x = _block_b(params, "Mixed_6a", x)
  for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
    x = _block_c(params, name, x)
  x = _block_d(params, "Mixed_7a", x)
  x = _block_e(params, "Mixed_7b", x, _average_pool(x))
  x = _block_e(params, "Mixed_7c", x, _max_pool(x, 1, "SAME"))
  return x.mean((1, 2))


def _fold(tensors: Mapping[str, np.ndarray], name: str) -> Conv:
  variance = tensors[f"{name}.bn.running_var"].astype(np.float64)
  scale = tensors[f"{name}.bn.weight"] / np.sqrt(variance + _BATCH_NORM_EPSILON)
  bias = tensors[f"{name}.bn.bias"] - tensors[f"{name}.bn.running_mean"] * scale
  kernel = tensors[f"{name}.conv.weight"] * scale[:, None, None, None]
  kernel = kernel.transpose(2, 3, 1, 0)
  return Conv(*jax.device_put((kernel.astype(np.float32), bias.astype(np.float32))))


def _conv(
  params: Params, name: str, x: jax.Array, stride: int = 1, padding: str = "SAME"
) -> jax.Array:
  kernel, bias = params[name]
  dimensions = ("NHWC", "HWIO", "NHWC")
  x = lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=dimensions)
  return jax.nn.relu(x + bias)


def _chain(params: Params, names: tuple[str, ...], x: jax.Array) -> jax.Array:
  for name in names:
    x = _conv(params, name, x)
  return x


def _max_pool(x: jax.Array, stride: int, padding: str) -> jax.Array:
  return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def _average_pool(x: jax.Array) -> jax.Array:
  """Averages 3 x 3 windows at stride 1, over pixels inside the picture only."""
  counts = []
  for size in x.shape[1:3]:
    count = np.full(size, 3.0, np.float32)
    count[0] -= 1
    count[-1] -= 1
    counts.append(count)
  total = lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
  return total / np.outer(*counts)[:, :, None]


def _join(*branches: jax.Array) -> jax.Array:
  return jnp.concatenate(branches, axis=-1)


def _shapes_a(channels: int, pool_channels: int) -> dict[str, Shape]:
  return {
    "branch1x1": (64, channels, 1, 1),
    "branch5x5_1": (48, channels, 1, 1),
    "branch5x5_2": (64, 48, 5, 5),
    "branch3x3dbl_1": (64, channels, 1, 1),
    "branch3x3dbl_2": (96, 64, 3, 3),
    "branch3x3dbl_3": (96, 96, 3, 3),
    "branch_pool": (pool_channels, channels, 1, 1),
  }


def _block_a(params: Params, name: str, x: jax.Array) -> jax.Array:
  double = tuple(f"{name}.branch3x3dbl_{i}" for i in (1, 2, 3))
  return _join(
    _conv(params, f"{name}.branch1x1", x),
    _chain(params, (f"{name}.branch5x5_1", f"{name}.branch5x5_2"), x),
    _chain(params, double, x),
    _conv(params, f"{name}.branch_pool", _average_pool(x)),
  )


def _shapes_b(channels: int) -> dict[str, Shape]:
  return {
    "branch3x3": (384, channels, 3, 3),
    "branch3x3dbl_1": (64, channels, 1, 1),
    "branch3x3dbl_2": (96, 64, 3, 3),
    "branch3x3dbl_3": (96, 96, 3, 3),
  }


def _block_b(params: Params, name: str, x: jax.Array) -> jax.Array:
  double = _chain(params, (f"{name}.branch3x3dbl_1", f"{name}.branch3x3dbl_2"), x)
  return _join(
    _conv(params, f"{name}.branch3x3", x, 2, "VALID"),
    _conv(params, f"{name}.branch3x3dbl_3", double, 2, "VALID"),
    _max_pool(x, 2, "VALID"),
  )


def _shapes_c(channels: int, hidden: int) -> dict[str, Shape]:
  return {
    "branch1x1": (192, channels, 1, 1),
    "branch7x7_1": (hidden, channels, 1, 1),
    "branch7x7_2": (hidden, hidden, 1, 7),
    "branch7x7_3": (192, hidden, 7, 1),
    "branch7x7dbl_1": (hidden, channels, 1, 1),
    "branch7x7dbl_2": (hidden, hidden, 7, 1),
    "branch7x7dbl_3": (hidden, hidden, 1, 7),
    "branch7x7dbl_4": (hidden, hidden, 7, 1),
    "branch7x7dbl_5": (192, hidden, 1, 7),
    "branch_pool": (192, channels, 1, 1),
  }


def _block_c(params: Params, name: str, x: jax.Array) -> jax.Array:
  return _join(
    _conv(params, f"{name}.branch1x1", x),
    _chain(params, tuple(f"{name}.branch7x7_{i}" for i in (1, 2, 3)), x),
    _chain(params, tuple(f"{name}.branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)), x),
    _conv(params, f"{name}.branch_pool", _average_pool(x)),
  )


def _shapes_d(channels: int) -> dict[str, Shape]:
  return {
    "branch3x3_1": (192, channels, 1, 1),
    "branch3x3_2": (320, 192, 3, 3),
    "branch7x7x3_1": (192, channels, 1, 1),
    "branch7x7x3_2": (192, 192, 1, 7),
    "branch7x7x3_3": (192, 192, 7, 1),
    "branch7x7x3_4": (192, 192, 3, 3),
  }


def _block_d(params: Params, name: str, x: jax.Array) -> jax.Array:
  single = _conv(params, f"{name}.branch3x3_1", x)
  seven = _chain(params, tuple(f"{name}.branch7x7x3_{i}" for i in (1, 2, 3)), x)
  return _join(
    _conv(params, f"{name}.branch3x3_2", single, 2, "VALID"),
    _conv(params, f"{name}.branch7x7x3_4", seven, 2, "VALID"),
    _max_pool(x, 2, "VALID"),
  )


def _shapes_e(channels: int) -> dict[str, Shape]:
  return {
    "branch1x1": (320, channels, 1, 1),
    "branch3x3_1": (384, channels, 1, 1),
    "branch3x3_2a": (384, 384, 1, 3),
    "branch3x3_2b": (384, 384, 3, 1),
    "branch3x3dbl_1": (448, channels, 1, 1),
    "branch3x3dbl_2": (384, 448, 3, 3),
    "branch3x3dbl_3a": (384, 384, 1, 3),
    "branch3x3dbl_3b": (384, 384, 3, 1),
    "branch_pool": (192, channels, 1, 1),
  }


def _block_e(params: Params, name: str, x: jax.Array, pooled: jax.Array) -> jax.Array:
  single = _conv(params, f"{name}.branch3x3_1", x)
  double = _chain(params, (f"{name}.branch3x3dbl_1", f"{name}.branch3x3dbl_2"), x)
  return _join(
    _conv(params, f"{name}.branch1x1", x),
    _conv(params, f"{name}.branch3x3_2a", single),
    _conv(params, f"{name}.branch3x3_2b", single),
    _conv(params, f"{name}.branch3x3dbl_3a", double),
    _conv(params, f"{name}.branch3x3dbl_3b", double),
    _conv(params, f"{name}.branch_pool", pooled),
  )
