"""Tiny autoencoders of madebyollin/taesd (MIT): TAESD, TAESD3, TAEF1 and TAEF2.

Pictures are in [0, 1] on both sides. The encoder is a convolution, residual blocks with strided
convolutions between them, and a convolution to the latents; the decoder bounds the latents softly
by 3 and mirrors that, with nearest neighbours before the convolutions that double the size. A block
is three convolutions beside the identity; those of TAEF2 at the latents' size first add a
bottleneck that is normalised over the whole map.

The files are PyTorch's state dicts, by the numbers of the layers in a sequence, one for each side,
as safetensors or as arrays of NumPy (`.npz`, of which nothing is unpickled).
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.errors import BadDataError, ConfigError
from udp_jax.models.tensor_files import open_tensors
from udp_jax.ops.conv import conv2d, upsampled_conv2d
from udp_jax.ops.norm import group_norm

_SUFFIXES = (".safetensors", ".npz")
_GROUPS, _EPSILON, _BOUND = 4, 1e-5, 3.0
_NAME = re.compile(r"(\d+)\.((?:conv\.[024]|pool\.[013])\.)?(weight|bias)")

Params = dict[str, Any]


def files_in(folder: Path) -> tuple[Path, Path] | None:
  """Returns the files of the encoder and of the decoder in a folder; None if it has neither.

  Raises:
    ConfigError: there are several, or one without the other.
  """
  found = [
    sorted(p for p in folder.iterdir() if side in p.name.lower() and p.suffix in _SUFFIXES)
    for side in ("encoder", "decoder")
  ]
  if not any(found):
    return None
  if [len(paths) for paths in found] != [1, 1]:
    names = ", ".join(path.name for paths in found for path in paths)
    raise ConfigError(f"{folder} needs one file of an encoder and one of a decoder, it has {names}")
  return found[0][0], found[1][0]


def load(encoder: Path, decoder: Path) -> Params:
  """Reads an autoencoder from its two files.

  Raises:
    BadDataError: a file is damaged, or holds another network.
  """
  sides = {"encoder": encoder, "decoder": decoder}
  params = {side: _layers(_read(path), path) for side, path in sides.items()}
  counts = [sum(_changes_size(layer) for layer in layers) for layers in params.values()]
  if counts[0] != counts[1]:
    raise BadDataError(f"{encoder} halves {counts[0]} times, {decoder} doubles {counts[1]} times")
  return jax.device_put(params)


def downscale(params: Params) -> int:
  """Pixels along a side of a latent."""
  return 2 ** sum(_changes_size(layer) for layer in params["encoder"])


def reconstruct(params: Params, images: jax.Array) -> jax.Array:
  """Encodes and decodes (B, H, W, 3) in [0, 1], sides multiples of `downscale`; not clipped."""
  return decode(params, encode(params, images))


def encode(params: Params, images: jax.Array) -> jax.Array:
  """Returns the latents (B, H / downscale, W / downscale, C) of pictures (B, H, W, 3) in [0, 1]."""
  x = images
  for layer in params["encoder"]:
    if "conv.0" in layer:
      x = _block(layer, x)
    else:
      x = conv2d(x, **layer, stride=2 if _changes_size(layer) else 1)
  return x


def decode(params: Params, latents: jax.Array) -> jax.Array:
  """Returns pictures of latents, not clipped."""
  first, *layers = params["decoder"]
  x = jax.nn.relu(conv2d(_BOUND * jnp.tanh(latents / _BOUND), **first))
  for layer in layers:
    if "conv.0" in layer:
      x = _block(layer, x)
    else:
      x = upsampled_conv2d(x, **layer) if _changes_size(layer) else conv2d(x, **layer)
  return x


def _changes_size(layer: Params) -> bool:
  """Only the convolutions that halve or double have no bias."""
  return "kernel" in layer and "bias" not in layer


def _block(layer: Params, x: jax.Array) -> jax.Array:
  if "pool.0" in layer:
    y = conv2d(x, **layer["pool.0"], padding=0)
    norm = layer["pool.1"]
    y = group_norm(y, norm["kernel"], norm["bias"], num_groups=_GROUPS, epsilon=_EPSILON)
    x = x + conv2d(jax.nn.relu(y), **layer["pool.3"], padding=0)
  y = jax.nn.relu(conv2d(x, **layer["conv.0"]))
  y = jax.nn.relu(conv2d(y, **layer["conv.2"]))
  return jax.nn.relu(conv2d(y, **layer["conv.4"]) + x)


def _read(path: Path) -> Mapping[str, np.ndarray]:
  if path.suffix == ".safetensors":
    return open_tensors(path)
  try:
    with np.load(path, allow_pickle=False) as arrays:
      return dict(arrays)
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise BadDataError(f"{path} is not a readable file of arrays: {error}") from error


def _layers(tensors: Mapping[str, np.ndarray], path: Path) -> list[Params]:
  """Groups tensors by the numbers of their layers; kernels become HWIO."""
  layers: dict[int, Params] = {}
  for name in tensors:
    match = _NAME.fullmatch(name)
    if match is None:
      raise BadDataError(f"{path}: {name} is no tensor of a tiny autoencoder that is known here")
    number, inner, kind = match.groups()
    layer = layers.setdefault(int(number), {})
    layer = layer.setdefault(inner[:-1], {}) if inner else layer
    value = np.asarray(tensors[name], np.float32)
    value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
    layer["kernel" if kind == "weight" else "bias"] = value
  found = [layers[number] for number in sorted(layers)]
  for layer in found:
    parts = set(layer)
    pool = {"pool.0", "pool.1", "pool.3"}
    known = (
      {"kernel"},
      {"kernel", "bias"},
      (convs := {"conv.0", "conv.2", "conv.4"}),
      convs | pool,
    )
    if parts not in known:
      raise BadDataError(
        f"{path} has a layer of {', '.join(sorted(parts))}, which is not known here"
      )
  return found
