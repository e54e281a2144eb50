"""Converts weights between diffusers' folder layout (config.json + safetensors) and flax params.

Our modules have diffusers' names with ".N" written "_N" (`down_blocks_0/resnets_1/conv1`), so a
short table of rules converts both ways:

  list modules    down_blocks_0             <->  down_blocks.0       (`LIST_MODULES`)
  convolutions    kernel (H, W, I, O)       <->  weight (O, I, H, W)
  dense layers    kernel (I, O)             <->  weight (O, I)
  norms           scale (C,)                <->  weight (C,)
  embeddings      embedding (N, C)          <->  weight (N, C)
  biases          bias (C,)                 <->  bias (C,)

Reading also accepts attention names from before diffusers 0.17 (query, key, value, proj_attn), such
layers stored as 1x1 convolutions, and CLIP's names without "text_model.", as transformers 5 writes
them. Only safetensors files are read: a PyTorch `.bin` is a pickle, which can run code when opened.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from udp_jax.errors import BadDataError, MissingDataError, OutputError
from udp_jax.models import tensor_files
from udp_jax.models.noise_scheduler import (
  load_scheduler_config,
  schedule_from_config,
  scheduler_config,
)
from udp_jax.runtime import files

__all__ = [
  "from_torch_names",
  "load_pretrained",
  "load_scheduler_config",
  "save_pipeline",
  "save_pretrained",
  "schedule_from_config",
  "scheduler_config",
  "to_torch_names",
  "torch_name",
]

_log = logging.getLogger(__name__)

PyTree = Any

# Modules that are lists in PyTorch. Any other "_N" is part of the name (`linear_1` of
# `time_embedding` is not a list element).
LIST_MODULES = (
  "down_blocks|up_blocks|resnets|attentions|downsamplers|upsamplers|to_out|transformer_blocks|net"
  "|layers"
)
_LIST_MODULE = re.compile(rf"({LIST_MODULES})_(\d+)")

_LEAF_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
# Parameters of CLIP that belong to no layer.
_LEAF_NAMES |= {name: name for name in ("class_embedding", "logit_scale")}
_LEGACY_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LEGACY_NAME = re.compile(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")
# Dense layers that converted checkpoints may store as 1x1 convolutions.
_ONCE_CONVOLUTIONS = re.compile(r"attentions\.\d+\.to_(q|k|v|out\.0)\.weight")
_TEXT_PREFIX = "text_model."
# Constants that older files store with the weights.
_BUFFERS = ("position_ids",)

# Stems for diffusers models, then for transformers models (CLIP).
_STEMS = ("diffusion_pytorch_model", "model")
_TRANSFORMERS_MODELS = ("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel")
_HOW_TO_GET = (
  "On a machine with network access run `hf download OWNER/MODEL --local-dir FOLDER` for the whole "
  "model, and give FOLDER"
)


def torch_name(path: tuple[str, ...]) -> str:
  """Returns PyTorch's name of a parameter: ("to_out_0", "kernel") -> "to_out.0.weight".

  Raises:
    ValueError: the last part is not kernel, scale, embedding or bias.
  """
  *modules, leaf = path
  if leaf not in _LEAF_NAMES:
    raise ValueError(f"no PyTorch name for parameter {'/'.join(path)}: unknown kind {leaf!r}")
  return ".".join([*(_LIST_MODULE.sub(r"\1.\2", m) for m in modules), _LEAF_NAMES[leaf]])


def to_torch_names(params: PyTree) -> dict[str, np.ndarray]:
  """Converts a flax params tree to PyTorch's flat state dict of contiguous float32 arrays."""
  tensors = {}
  for path, value in _flatten(params):
    array = np.asarray(value).astype(np.float32)
    if path[-1] == "kernel":  # (..., I, O) -> (O, I, ...)
      array = np.transpose(array, (array.ndim - 1, array.ndim - 2, *range(array.ndim - 2)))
    # `ascontiguousarray` would turn a scalar into a vector.
    tensors[torch_name(path)] = np.asarray(array, order="C")
  return tensors


def from_torch_names(
  tensors: Mapping[str, np.ndarray],
  template: PyTree,
  *,
  origin: str = "the weights",
  put: Callable[[np.ndarray], Any] = lambda leaf: leaf,
) -> PyTree:
  """Converts a PyTorch state dict to a flax params tree, one tensor at a time.

  Args:
    tensors: name -> array, as `load_pretrained` returns them.
    template: params or their shapes from `jax.eval_shape`; sets structure, shapes and dtypes.
    origin: where the tensors came from, for error messages.
    put: applied to each leaf as soon as it is made. With `jax.device_put` only one tensor at a time
      is in memory twice.

  Returns:
    `template`'s tree with NumPy arrays as leaves, not on a device, or what `put` makes of them.

  Raises:
    BadDataError: tensors are missing, unexpected or mis-shaped; the message names them.
  """
  named = {_modern_name(name): name for name in tensors}
  wanted = _flatten(template)
  if all(path[0] == _TEXT_PREFIX[:-1] for path, _ in wanted) and not any(
    name.startswith(_TEXT_PREFIX) for name in named
  ):
    named = {_TEXT_PREFIX + name: theirs for name, theirs in named.items()}
  leaves, missing, mis_shaped = [], [], []
  for path, expected in wanted:
    name = torch_name(path)
    if name not in named:
      missing.append(name)
      continue
    array = np.asarray(tensors[named.pop(name)])
    if array.shape[2:] == (1, 1) and _ONCE_CONVOLUTIONS.search(name):
      array = array[:, :, 0, 0]
    if path[-1] == "kernel" and array.ndim >= 2:  # (O, I, ...) -> (..., I, O)
      array = np.transpose(array, (*range(2, array.ndim), 1, 0))
    if array.shape != tuple(expected.shape):
      mis_shaped.append(f"{name} (as {array.shape}, wanted {tuple(expected.shape)})")
      continue
    leaves.append(put(array.astype(expected.dtype, order="C", copy=False)))
  unexpected = [name for name in named if name.rsplit(".", 1)[-1] not in _BUFFERS]
  problems = [
    f"{len(names)} {kind}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
    for kind, names in (
      ("missing", missing),
      ("unexpected", unexpected),
      ("mis-shaped", mis_shaped),
    )
    if names
  ]
  if problems:
    raise BadDataError(
      f"{origin} do not fit this model; {'; '.join(problems)}. Does config.json belong to them?"
    )
  return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(template), leaves)


def save_pretrained(
  folder: str | os.PathLike[str],
  config: Mapping[str, Any],
  params: PyTree,
  *,
  class_name: str = "UNet2DModel",
) -> None:
  """Writes a model folder that diffusers' `class_name.from_pretrained(folder)` opens.

  A failed save leaves the older model unchanged; a killed one never leaves a config beside weights
  of another model.

  Args:
    folder: the folder, created if needed.
    config: the model's fields, under diffusers' names.
    params: flax params; stored as float32.
    class_name: the diffusers class, or transformers' "CLIPTextModel".

  Raises:
    OutputError: the folder cannot be written, or holds a sharded model (whose index file would
      take precedence over the new weights).
  """
  folder = Path(folder)
  tensors = to_torch_names(params)
  with files.output_errors(folder):
    folder.mkdir(parents=True, exist_ok=True)
  if stale := sorted(folder.glob("*.safetensors.index*.json")):
    raise OutputError(f"{folder} holds a sharded model ({stale[0].name}): choose another folder")
  metadata = {"format": "pt"}  # PyTorch's readers require it.
  transformers = class_name in _TRANSFORMERS_MODELS
  named = {"architectures": [class_name]} if transformers else {"_class_name": class_name}
  try:
    files.write_together(
      {
        folder / f"{_STEMS[transformers]}.safetensors": lambda path: safetensors.numpy.save_file(
          tensors, path, metadata=metadata
        ),
        folder / "config.json": _as_json({**named, **config}),
      }
    )
  except safetensors.SafetensorError as error:
    raise OutputError(f"cannot write the model to {folder}: {error}") from error


def save_pipeline(
  folder: str | os.PathLike[str],
  config: Mapping[str, Any],
  params: PyTree,
  scheduler: Mapping[str, Any],
  *,
  class_name: str = "UNet2DModel",
) -> None:
  """Writes a pixel model and its noise schedule for `DDPMPipeline.from_pretrained(folder)`.

  Args:
    folder: the folder for unet/, scheduler/scheduler_config.json and, last, model_index.json.
    config: the U-Net's fields, under diffusers' names.
    params: flax params of the U-Net.
    scheduler: fields of diffusers' `DDPMScheduler`, e.g. from `scheduler_config`.
    class_name: the diffusers class of the U-Net.

  Raises:
    OutputError: the folder cannot be written.
  """
  folder = Path(folder)
  save_pretrained(folder / "unet", config, params, class_name=class_name)
  index = {
    "_class_name": "DDPMPipeline",
    "scheduler": ["diffusers", "DDPMScheduler"],
    "unet": ["diffusers", class_name],
  }
  files.write_together(
    {
      folder / "scheduler" / "scheduler_config.json": _as_json(
        {"_class_name": "DDPMScheduler", **scheduler}
      ),
      folder / "model_index.json": _as_json(index),
    }
  )


def load_pretrained(
  folder: str | os.PathLike[str],
  *,
  subfolder: str = "unet",
  class_name: str | None = None,
  variant: str | None = None,
) -> tuple[dict[str, Any], tensor_files.Tensors]:
  """Reads a model's config and opens its tensors.

  Args:
    folder: the model's own folder, or a pipeline folder with the model in `subfolder`.
    subfolder: the model's place in a pipeline folder (unet, vae, text_encoder).
    class_name: the diffusers class that the config must name, if given.
    variant: "fp16" for `*.fp16.safetensors`. None prefers full precision, and falls back to the
      fp16 variant with a log message.

  Returns:
    config.json's fields, and arrays by PyTorch's name in the file's own dtype, each of which is
    read when it is looked up.

  Raises:
    MissingDataError: the folder, config.json or the weights (one file or shards) do not exist.
    BadDataError: a file is damaged, or the model has another class.
  """
  folder = Path(folder)
  home = folder if (folder / "config.json").is_file() else folder / subfolder
  if not (home / "config.json").is_file():
    raise MissingDataError(f"no config.json in {folder} or {folder / subfolder}. {_HOW_TO_GET}")
  config = files.read_json(home / "config.json")
  if class_name is not None and config.get("_class_name", class_name) != class_name:
    raise BadDataError(
      f"{home / 'config.json'} describes a {config['_class_name']}, not a {class_name}"
    )
  source = _find_weights(home, variant)
  if source.suffix == ".safetensors":
    return config, tensor_files.open_tensors(source)
  weight_map = files.read_json(source).get("weight_map")
  if not isinstance(weight_map, dict):
    raise BadDataError(f"{source} has no weight_map: download it again")
  stored: dict[str, tensor_files.Stored] = {}
  for shard in sorted(set(weight_map.values())):
    if Path(shard).name != shard:
      raise BadDataError(f"{source} points outside its folder: {shard!r}")
    if not (home / shard).is_file():
      raise MissingDataError(f"{home / shard}, named by {source.name}, is missing. {_HOW_TO_GET}")
    stored |= tensor_files.open_tensors(home / shard).stored
  if lost := sorted(set(weight_map) - set(stored)):
    raise BadDataError(f"{source} promises {lost[0]} ({len(lost)} in all), but no shard has it")
  return config, tensor_files.Tensors(stored)


def _flatten(tree: PyTree) -> list[tuple[tuple[str, ...], Any]]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [(tuple(str(entry.key) for entry in path), leaf) for path, leaf in leaves]


def _modern_name(name: str) -> str:
  return _LEGACY_NAME.sub(lambda m: f"{m[1]}.{_LEGACY_ATTENTION[m[2]]}.{m[3]}", name)


def _find_weights(home: Path, variant: str | None) -> Path:
  """Finds the weights file in `home`, or the index of its shards."""
  infixes = ["", ".fp16"] if variant is None else [f".{variant}"]
  for infix in infixes:
    for stem in _STEMS:
      for name in (f"{stem}{infix}.safetensors", f"{stem}.safetensors.index{infix}.json"):
        if (home / name).is_file():
          if variant is None and infix:
            _log.info("%s holds no full-precision weights; taking %s", home, name)
          return home / name
  wanted = f"{_STEMS[0]}{infixes[0]}.safetensors"
  if pickles := sorted(home.glob("*.bin")):
    raise MissingDataError(
      f"no {wanted} in {home}, only {pickles[0].name}, a pickle, which is never opened here"
      " because it can run code. Convert it where PyTorch diffusers is installed, if you trust it:"
      " load the folder with the model class's from_pretrained(folder) and write it with"
      " save_pretrained(folder)"
    )
  raise MissingDataError(f"no {wanted} in {home}. {_HOW_TO_GET}")


def _as_json(content: Mapping[str, Any]) -> Callable[[Path], object]:
  text = json.dumps(content, indent=2, sort_keys=True) + "\n"
  return lambda path: path.write_text(text, "utf-8")
