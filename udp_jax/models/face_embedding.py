"""Face embeddings by ArcFace's network, whose weights are given, or by SFace's, from a package.

ArcFace (Deng et al., arXiv:1801.07698): the architecture is the IResNet of deepinsight/insightface
(arcface_torch): four stages whose first block halves the map, a normalisation before the first
convolution of every block, PReLU, and a dense layer over the last 7x7 map. Depth and widths are
inferred from the tensors, which keep their published names (`layer1.0.bn1.weight`, ...), so the
same code runs r18, r34, r50, r100 and r200.

There is no face detection or alignment: the network sees the largest centred square of a picture,
resized to 112 pixels. Published similarities are for detected faces, aligned by five landmarks;
ours are lower, and meaningful only if a face fills the picture. A picture without a face also gets
an embedding, which is meaningless. `sface` has the other network.

All normalisations use inference statistics; those after a convolution are folded into it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from udp_jax.errors import BadDataError, ConfigError, MissingDataError
from udp_jax.models import sface, torch_zip
from udp_jax.ops.conv import conv2d
from udp_jax.ops.image import resize, to_model_range
from udp_jax.runtime import files

# Name of the network that needs no file.
SFACE = "sface"

_EPSILON = 1e-5
_STAGES = ("layer1", "layer2", "layer3", "layer4")
_HOW_TO_GET = (
  f"name it {SFACE} for the network in the package {sface.PACKAGE}, or "
  "take a `backbone.pth` of insightface's arcface_torch model zoo; give it with its sha256, or make"
  ' it safetensors where PyTorch is: python -c "import torch, safetensors.torch as s; '
  "s.save_file(torch.load('backbone.pth', weights_only=True), 'arcface.safetensors')\""
)


class FaceEmbedding(NamedTuple):
  """A network that embeds pictures of faces.

  Attributes:
    params: weights, a pytree.
    size: side of the input pictures, pixels; 112 for the published networks.
    dim: length of the embeddings; 512 for the published networks.
    revision: name and hash of the weights, for the record.
    network: (params, pictures (B, size, size, 3) in [-1, 1]) -> vectors (B, dim).
    label: name of the network in reports.
  """

  params: dict[str, Any]
  size: int
  dim: int
  revision: str
  network: Callable[[Any, jax.Array], jax.Array]
  label: str

  def apply(self, params: Any, images: jax.Array) -> jax.Array:
    """Embeds RGB pictures (B, H, W, 3) in [0, 1] as unit vectors (B, dim); differentiable."""
    vectors = self.network(params, to_model_range(centre_square(images, self.size)))
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


def centre_square(images: jax.Array, size: int) -> jax.Array:
  """Cuts the largest centred square from (B, H, W, 3) and resizes it bilinearly to `size`."""
  height, width = images.shape[1:3]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  square = images[:, top : top + side, left : left + side]
  return resize(square, (size, size), method="linear")


def embed(params: Mapping[str, Any], x: jax.Array) -> jax.Array:
  """Embeds pictures (B, size, size, 3) in [-1, 1] as vectors (B, dim), not normalised.

  Args:
    params: parameters from `params_from_tensors`.
    x: RGB pictures; the published networks were trained on (level - 127.5) / 127.5.
  """
  x = _prelu(params["conv1"], params["prelu"], x)
  for blocks in params["stages"]:
    for number, block in enumerate(blocks):
      stride = 1 if number else 2
      scale, shift = block["bn1"]
      # Not folded: the convolution pads with zeros after this normalisation, not before it.
      hidden = _prelu(block["conv1"], block["prelu"], x * scale + shift)
      hidden = conv2d(hidden, *block["conv2"], stride=stride, padding=1)
      if "downsample" in block:
        x = conv2d(x, *block["downsample"], stride=stride, padding=0)
      x = x + hidden
  kernel, bias = params["fc"]
  return x.reshape(len(x), -1) @ kernel + bias


def _prelu(conv: tuple[jax.Array, jax.Array], slope: jax.Array, x: jax.Array) -> jax.Array:
  out = conv2d(x, *conv, stride=1, padding=1)
  return jnp.where(out >= 0, out, slope * out)


def load(path: str | Path, *, sha256: str = "") -> FaceEmbedding:
  """Loads an IResNet from a file, or SFace.

  Args:
    path: a safetensors or `.pth` file with tensors under insightface's names, or "sface".
    sha256: SHA-256 of a `.pth` file, which is not opened without it.

  Raises:
    MissingDataError: the file does not exist; the message says how to get one.
    ConfigError: a `.pth` file is given without its sha256.
    BadDataError: the file is damaged, or holds another network.
  """
  if str(path) == SFACE:
    own, revision = sface.load()
    return FaceEmbedding(own, 112, 128, revision, sface.embed, "SFace")
  path = Path(path)
  if not path.is_file():
    raise MissingDataError(f"no face model {path}; {_HOW_TO_GET}")
  files.refuse_lfs_pointer(path)
  if path.suffix == ".safetensors":
    try:
      tensors = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
      raise BadDataError(f"{path}: not a readable safetensors file ({error})") from error
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
  elif not sha256:
    raise ConfigError(
      f"{path} is a pickle, and is opened only with its sha256 given; {_HOW_TO_GET}"
    )
  else:
    tensors = torch_zip.read_tensors(path, sha256=sha256)
  try:
    params = params_from_tensors(tensors)
  except BadDataError as error:
    raise BadDataError(f"{path}: {error}; {_HOW_TO_GET}") from error
  kernel = params["fc"][0]
  channels = params["stages"][-1][-1]["conv2"][0].shape[-1]
  # Every stage halves the map.
  size = round((kernel.shape[0] // channels) ** 0.5) * 2 ** len(_STAGES)
  revision = f"{path.name} sha256:{sha256}"
  return FaceEmbedding(params, size, kernel.shape[1], revision, embed, "ArcFace")


def params_from_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Converts tensors under insightface's names to the parameters of `embed`.

  Raises:
    BadDataError: a tensor is missing, unexpected, or has an invalid shape.
  """
  left = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}

  def take(name: str, *shape: int) -> np.ndarray:
    """Removes and returns a tensor after checking its shape; -1 in `shape` allows any size."""
    if name not in left:
      raise BadDataError(f"face model: tensor {name} is missing")
    value = np.asarray(left.pop(name), np.float64)
    if value.ndim != len(shape) or any(n not in (-1, m) for n, m in zip(shape, value.shape)):
      raise BadDataError(f"face model: tensor {name} is {value.shape}, expected {shape} (-1: any)")
    return value

  def norm(name: str, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scale and shift of a batch normalisation."""
    weight, bias, mean, variance = (
      take(f"{name}.{part}", channels) for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / np.sqrt(variance + _EPSILON)
    return scale, bias - mean * scale

  def conv(name: str, norm_name: str, inputs: int, outputs: int, size: int):
    """Returns a convolution kernel (H, W, I, O) and bias with its normalisation folded in."""
    kernel = take(f"{name}.weight", outputs, inputs, size, size).transpose(2, 3, 1, 0)
    scale, shift = norm(norm_name, kernel.shape[-1])
    return kernel * scale, shift

  first = conv("conv1", "bn1", 3, -1, 3)
  channels = first[0].shape[-1]
  params: dict[str, Any] = {"conv1": first, "prelu": take("prelu.weight", channels), "stages": []}
  for stage in _STAGES:
    found = {int(m[1]) for name in left if (m := re.match(rf"{stage}\.(\d+)\.", name))}
    blocks = []
    for number in range(max(len(found), 1)):
      name = f"{stage}.{number}"
      block: dict[str, Any] = {"bn1": norm(f"{name}.bn1", channels)}
      block["conv1"] = conv(f"{name}.conv1", f"{name}.bn2", channels, -1, 3)
      width = block["conv1"][0].shape[-1]
      block["prelu"] = take(f"{name}.prelu.weight", width)
      block["conv2"] = conv(f"{name}.conv2", f"{name}.bn3", width, width, 3)
      if number == 0:
        shortcut = f"{name}.downsample"
        block["downsample"] = conv(f"{shortcut}.0", f"{shortcut}.1", channels, width, 1)
      channels = width
      blocks.append(block)
    params["stages"].append(blocks)
  scale, shift = norm("bn2", channels)
  weight = take("fc.weight", -1, -1)
  side = round((weight.shape[1] / channels) ** 0.5)
  if side * side * channels != weight.shape[1]:
    raise BadDataError(f"face model: fc.weight is {weight.shape}, no square of {channels} channels")
  # PyTorch flattens (C, H, W), but our maps are (H, W, C).
  dense = weight.reshape(-1, channels, side, side).transpose(2, 3, 1, 0)
  bias = take("fc.bias", len(weight)) + np.einsum("hwco,c->o", dense, shift)
  last_scale, last_shift = norm("features", len(weight))
  kernel = (dense * scale[:, None]).reshape(-1, len(weight))
  params["fc"] = kernel * last_scale, bias * last_scale + last_shift
  if left:
    raise BadDataError(f"face model: {len(left)} tensors left over, such as {min(left)}")
  return jax.device_put(jax.tree.map(lambda leaf: leaf.astype(np.float32), params))
