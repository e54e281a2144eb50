"""Reads and writes files of low-rank updates for PyTorch diffusers' `load_lora_weights`.

Tensors have PEFT's names: the component and module, then lora_A.weight (rank, I[, H, W]) or
lora_B.weight (O, rank[, 1, 1]).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors

from udp_jax.errors import BadDataError, ConfigError, MissingDataError, OutputError
from udp_jax.models import lora, weights
from udp_jax.models.base import Params
from udp_jax.models.lora import Factors
from udp_jax.runtime import files

FILE_NAME = "pytorch_lora_weights.safetensors"
_PARTS = ("unet", "text_encoder", "text_encoder_2")
# PEFT's names, and the names that diffusers wrote before it used PEFT.
_SIDES = {
  "lora_A.weight": "A",
  "lora_B.weight": "B",
  "lora.down.weight": "A",
  "lora.up.weight": "B",
  "lora_linear_layer.down.weight": "A",
  "lora_linear_layer.up.weight": "B",
  "alpha": "alpha",
}
_METADATA = "lora_adapter_metadata"


def save_lora(
  folder: str | os.PathLike, factors: Factors, *, scale: float = 1.0, name: str = FILE_NAME
) -> Path:
  """Writes a file that PyTorch diffusers' `pipe.load_lora_weights(folder)` opens.

  The scale is multiplied into lora_B and lora_alpha equals the rank, its default everywhere, so
  that readers with and without support for lora_alpha agree.

  Args:
    folder: the folder, created if needed.
    factors: {"unet": ..., "text_encoder": ..., "text_encoder_2": ...}; any may be missing.
    scale: scale that the factors were trained with.
    name: the file's name.

  Returns:
    The file's path.

  Raises:
    ConfigError: the factors include a component that the format does not know.
    OutputError: the file cannot be written.
  """
  if extra := sorted(set(factors) - set(_PARTS)):
    raise ConfigError(f"a LoRA file holds factors of {', '.join(_PARTS)}, not of {extra[0]}")
  tensors: dict[str, np.ndarray] = {}
  for part, tree in factors.items():
    for path, module in _modules(tree, lora.is_module):
      stem = f"{part}.{_torch_module(path)}"
      a = np.asarray(module["lora_A"], np.float32)
      b = scale * np.asarray(module["lora_B"], np.float32)
      b = b.reshape((1,) * (a.ndim - 2) + b.shape)
      for side, value in (("lora_A", a), ("lora_B", b)):  # (..., I, O) -> (O, I, ...)
        value = np.transpose(value, (value.ndim - 1, value.ndim - 2, *range(value.ndim - 2)))
        tensors[f"{stem}.{side}.weight"] = np.ascontiguousarray(value, np.float32)
  path = Path(folder) / name
  write_tensors(path, tensors)
  return path


def load_lora(path: str | os.PathLike, params: Params) -> Factors:
  """Reads factors from a LoRA file of diffusers or PEFT, for `merge_factors` with scale 1.

  lora_B is multiplied by lora_alpha / rank, from the file's `.alpha` tensors or metadata.

  Args:
    path: the file, or a folder with `pytorch_lora_weights.safetensors`.
    params: the model's parameters, {"unet": ..., ...}; arrays or `jax.ShapeDtypeStruct`s.

  Raises:
    MissingDataError: the file does not exist.
    BadDataError: the file is damaged, or a tensor fits no module of the model.
  """
  path = Path(path)
  path = path / FILE_NAME if path.is_dir() else path
  tensors, metadata = read_tensors(path)
  if any(name.startswith("lora_unet_") or name.startswith("lora_te") for name in tensors):
    raise BadDataError(
      f"{path} is in kohya's format; in PyTorch diffusers load it with load_lora_weights and write "
      "it with save_lora_weights"
    )
  homes = {
    f"{part}.{_torch_module(module)}": (part, *module)
    for part in _PARTS
    if part in params
    for module, _ in _modules(params[part], lambda tree: "kernel" in tree)
  }
  adapter = _adapter_metadata(path, metadata)
  found: dict[str, dict[str, np.ndarray]] = {}
  for name, value in tensors.items():
    side = next((s for s in _SIDES if name.endswith(f".{s}")), None)
    stem = name[: -len(side) - 1] if side else name
    if side is None or stem not in homes:
      raise BadDataError(f"{path}: tensor {name} belongs to no module of this model")
    found.setdefault(stem, {})[_SIDES[side]] = value
  factors: Factors = {}
  for stem, sides in found.items():
    home = homes[stem]
    factor = _read_module(path, stem, sides, _kernel_shape(params, home), adapter.get(home[0], {}))
    place = factors
    for step in home[:-1]:
      place = place.setdefault(step, {})
    place[home[-1]] = factor
  if not factors:
    raise BadDataError(f"{path} holds no LoRA")
  return factors


def _read_module(
  path: Path,
  stem: str,
  sides: dict[str, np.ndarray],
  kernel: tuple[int, ...],
  adapter: dict[str, Any],
) -> dict[str, jax.Array]:
  """Converts PyTorch tensors to a module's {"lora_A", "lora_B"}, scaling by lora_alpha / rank."""
  if lost := [f"lora_{side}.weight" for side in "AB" if side not in sides]:
    raise BadDataError(f"{path}: {stem} has no {lost[0]}")
  made = {}
  for side in "AB":
    value = np.asarray(sides[side], np.float32)
    if value.ndim < 2:
      raise BadDataError(f"{path}: {stem}.lora_{side}.weight has shape {value.shape}")
    made[side] = np.transpose(value, (*range(2, value.ndim), 1, 0))  # (O, I, ...) -> (..., I, O)
  a, b = made["A"], made["B"]
  rank = a.shape[-1]
  # The file may store a 1x1 convolution where the module is dense, and vice versa.
  a = a.reshape(*kernel[:-1], rank) if a.size == np.prod(kernel[:-1]) * rank else a
  b = b.reshape(b.shape[-2:]) if b.size == b.shape[-1] * b.shape[-2] else b
  if a.shape != (*kernel[:-1], rank) or b.shape != (rank, kernel[-1]):
    raise BadDataError(
      f"{path}: {stem} has factors {sides['A'].shape} and {sides['B'].shape}, which do not fit a "
      f"kernel {kernel}"
    )
  scale = 1.0
  if "alpha" in sides:
    scale = float(sides["alpha"]) / rank
  elif adapter:
    name = stem.split(".", 1)[1]
    pattern = adapter.get("alpha_pattern") or {}
    known: Any = adapter.get("lora_alpha", rank)
    scale = float(pattern.get(name, known)) / rank
  return jax.device_put({"lora_A": a, "lora_B": np.float32(scale) * b})


def _adapter_metadata(path: Path, metadata: dict[str, str]) -> dict[str, dict[str, Any]]:
  """Reads PEFT's settings by component from the header, where diffusers stores them flat."""
  if _METADATA not in metadata:
    return {}
  try:
    entries = files.parse_json(metadata[_METADATA])
    settings: dict[str, dict[str, Any]] = {}
    for name, value in entries.items():
      part, _, field = name.partition(".")
      settings.setdefault(part, {})[field] = value
  except (ValueError, AttributeError) as error:
    raise BadDataError(f"{path}: its {_METADATA} is not readable: {error}") from error
  return settings


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
  """Writes a safetensors file for PyTorch's readers, atomically.

  Raises:
    OutputError: the file cannot be written.
  """
  try:
    files.write_together(
      {path: lambda at: safetensors.numpy.save_file(tensors, at, metadata={"format": "pt"})}
    )
  except safetensors.SafetensorError as error:
    raise OutputError(f"cannot write {path}: {error}") from error


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Reads the tensors and metadata of a safetensors file.

  Raises:
    MissingDataError: the file does not exist.
    BadDataError: the file is damaged or not in safetensors format.
  """
  if not path.is_file():
    raise MissingDataError(f"no file {path}; only .safetensors files are read, never pickles")
  files.refuse_lfs_pointer(path)
  try:
    with safetensors.safe_open(path, framework="numpy") as opened:
      return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}
  except (OSError, TypeError, safetensors.SafetensorError) as error:
    raise BadDataError(f"{path} is not a readable safetensors file: {error}") from error


def _modules(tree: Any, wanted: Callable[[Any], bool], path: tuple[str, ...] = ()):
  """Yields (path, module) for every wanted module of a nested dict."""
  for name in sorted(tree):
    value = tree[name]
    if isinstance(value, dict):
      if wanted(value):
        yield (*path, name), value
      else:
        yield from _modules(value, wanted, (*path, name))


def _torch_module(path: tuple[str, ...]) -> str:
  return weights.torch_name((*path, "kernel")).removesuffix(".weight")


def _kernel_shape(params: Params, home: tuple[str, ...]) -> tuple[int, ...]:
  for step in home:
    params = params[step]
  return tuple(params["kernel"].shape)
