"""Reads Stable Diffusion checkpoints of one safetensors file, in the names of their first authors.

Such files (`v1-5-pruned-emaonly.safetensors` and most of what people share) have the names of the
CompVis, Stability AI and OpenCLIP code. A table of rules gives each tensor its name in diffusers;
`models.weights` reads them under that name, one at a time, so that nothing is converted on disk:

  model.diffusion_model.*                      the U-Net
  first_stage_model.*                          the VAE
  cond_stage_model.transformer.*               the text encoder of 1.x, in transformers' names
  cond_stage_model.model.*                     the text encoder of 2.x, in OpenCLIP's names
  conditioner.embedders.0.transformer.*        the first text encoder of XL, in transformers' names
  conditioner.embedders.1.model.*              the second one, in OpenCLIP's names

Configs follow from the shapes; what shapes do not show is what these families have in common
(`_unet_config` and its neighbours say which). The names are compared with those of PyTorch
diffusers' `from_single_file` in tests/parity/test_single_file_parity.py.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from udp_jax.errors import BadDataError, ConfigError, MissingDataError
from udp_jax.models.tensor_files import Tensors, open_tensors

_log = logging.getLogger(__name__)

SD1, SD2, SDXL = "Stable Diffusion 1.x", "Stable Diffusion 2.x", "Stable Diffusion XL"
PREDICTIONS = ("epsilon", "v_prediction")

_UNET, _EMA, _VAE = "model.diffusion_model.", "model_ema.", "first_stage_model."
_CLIP, _OPENCLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
_XL_CLIP, _XL_OPENCLIP = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
# Files that are something else, by a piece of a tensor's name, and what to do with them.
_OTHERS = (
  (r"lora_(unet|te)|\.lora_|lora\.(up|down)", "a LoRA, not a model: `--lora` of sampling takes it"),
  (r"(^|\.)double_blocks\.", "a Flux model, which is not supported"),
  (r"(^|\.)joint_blocks\.", "Stable Diffusion 3, which is not supported"),
  (r"^control_model\.|^controlnet_", "a ControlNet, which is not supported"),
  (r"^conditioner\.embedders\.0\.model\.", "the refiner of XL, which is not supported"),
  (r"^edm_mean$", "Playground 2.5, which is not supported"),
  (r"^emb_params$|^clip_[lg]$|^<.*>$", "a learned token: `--embedding` of sampling takes it"),
  (r"^(unet\.)?down_blocks\.", "one part of a diffusers folder: give the whole folder"),
  (r"^text_model\.", "a text encoder alone: give a whole model"),
  (r"^(first_stage_model\.)?(encoder|decoder)\.conv_in\.", "a VAE alone: `--vae` takes it"),
)

# More blocks, levels or layers than any model has; names come from untrusted files.
_MOST = 100
# Fields of a VAE's config.json that no file of weights shows.
VAE_FIELDS = ("scaling_factor", "sample_size", "force_upcast")

Take = Callable[[np.ndarray], np.ndarray]


class Parts(NamedTuple):
  """A checkpoint's parts, as if they came from a diffusers folder.

  Attributes:
    family: `SD1`, `SD2` or `SDXL`.
    configs: fields of each part's config.json: "unet", "vae", "text_encoder", "text_encoder_2".
    tensors: arrays of each part by diffusers' name, read when they are looked up.
    scheduler: fields of scheduler_config.json.
    vae_fields: what a VAE in place of the file's own has to know: `VAE_FIELDS`.
  """

  family: str
  configs: dict[str, dict[str, Any]]
  tensors: dict[str, Mapping[str, np.ndarray]]
  scheduler: dict[str, Any]
  vae_fields: dict[str, Any]


class Renamed(Mapping[str, np.ndarray]):
  """Tensors of a file under other names; each is read and reshaped when it is looked up."""

  def __init__(self, tensors: Tensors, table: Mapping[str, tuple[str, Take | None]]):
    self.tensors, self.table = tensors, dict(table)

  def __getitem__(self, name: str) -> np.ndarray:
    theirs, take = self.table[name]
    array = self.tensors[theirs]
    return array if take is None else take(array)

  def __contains__(self, name: object) -> bool:
    return name in self.table

  def __iter__(self) -> Iterator[str]:
    return iter(self.table)

  def __len__(self) -> int:
    return len(self.table)


def family(names: Collection[str], origin: str) -> str:
  """Returns the family of a checkpoint by its tensors' names.

  Args:
    names: names of all tensors.
    origin: the file, for error messages.

  Raises:
    ConfigError: it is not a checkpoint of Stable Diffusion 1.x, 2.x or XL; says what it is.
    MissingDataError: it has no text encoder.
  """
  whole = any(name.startswith(_UNET) for name in names)
  for sign, what in _OTHERS[: 6 if whole else None]:
    if any(re.search(sign, name) for name in names):
      raise ConfigError(f"{origin} is {what}")
  if not whole:
    some = ", ".join(sorted(names)[:2]) or "none"
    raise ConfigError(
      f"{origin} is no Stable Diffusion checkpoint: no tensor is named {_UNET}* (there are: {some})"
    )
  prefixes = {_XL_OPENCLIP: SDXL, _OPENCLIP: SD2, _CLIP: SD1}
  for prefix, found in prefixes.items():
    if any(name.startswith(prefix) for name in names):
      return found
  raise MissingDataError(
    f"{origin} has no text encoder ({', '.join(f'{prefix}*' for prefix in prefixes)}): take a "
    "checkpoint with all parts, or a diffusers folder"
  )


def family_of(path: str | os.PathLike[str]) -> str:
  """Returns the family of a checkpoint, from the header of its file. Raises as `open_file`."""
  return family(open_tensors(path), str(path))


def open_file(
  path: str | os.PathLike[str],
  *,
  prediction_type: str = "",
  ema: bool = False,
  vae: bool = True,
) -> Parts:
  """Opens a checkpoint; tensors are read when they are looked up.

  Args:
    path: a safetensors file of Stable Diffusion 1.x, 2.x or XL.
    prediction_type: "epsilon" or "v_prediction". "" decides as diffusers does: 2.x predicts v, but
      not for inpainting, nor if the file says that it was trained for 875,000 steps (2-base); other
      families predict the noise. A file that says what it predicts ("modelspec.prediction_type" in
      its header, or a tensor "v_pred") is believed first.
    ema: whether to take the averaged weights of the U-Net (model_ema.*) of a file with both.
    vae: whether the file's own VAE is needed.

  Raises:
    ConfigError: the file is something else, or the prediction type is unknown.
    MissingDataError: a part is missing, or the averaged weights.
    BadDataError: the file is damaged, or its tensors contradict each other.
  """
  if prediction_type and prediction_type not in PREDICTIONS:
    raise ConfigError(
      f"prediction_type is {prediction_type!r}; known: {', '.join(PREDICTIONS)}, or '' to look"
    )
  tensors, origin = open_tensors(path), str(path)
  kind = family(tensors, origin)
  if vae and not any(name.startswith(_VAE) for name in tensors):
    raise MissingDataError(
      f"{origin} has no VAE ({_VAE}*): give one with --vae=FILE (config.model.vae)"
    )
  try:
    return _parts(tensors, kind, prediction_type, ema, vae, origin)
  except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
    raise BadDataError(
      f"{origin} is not the {kind} that its names promise; it lacks or misshapes {error}"
    ) from error


def open_vae(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Mapping[str, np.ndarray]]:
  """Opens the VAE of a file: of a whole checkpoint, or alone, in either kind of names.

  Returns:
    Fields of its config.json, without `VAE_FIELDS`, and its tensors by diffusers' name.

  Raises:
    ConfigError: the file has no VAE of Stable Diffusion.
    BadDataError: it is damaged.
  """
  tensors = open_tensors(path)
  prefix = _VAE if any(name.startswith(_VAE) for name in tensors) else ""
  try:
    table = vae_names(tensors, prefix)
    config = _vae_config(tensors, table)
  except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
    raise ConfigError(f"{path} is no VAE of Stable Diffusion: it lacks {error}") from error
  return config, Renamed(tensors, table)


def _parts(
  tensors: Tensors, kind: str, prediction_type: str, ema: bool, vae: bool, origin: str
) -> Parts:
  tables = {"unet": unet_names(tensors)}
  if len(averaged := [name for name in tensors if name.startswith(_EMA)]) > 1:
    if not ema:
      _log.info("%s also has averaged weights (%s*), which are not used", origin, _EMA)
  elif ema:
    raise MissingDataError(f"{origin} has no averaged weights ({_EMA}*): leave out `ema`")
  if vae:
    tables["vae"] = vae_names(tensors, _VAE)
  clip = {SD1: _CLIP, SD2: _OPENCLIP, SDXL: _XL_CLIP}[kind]
  tables["text_encoder"] = (openclip_names if kind == SD2 else clip_names)(tensors, clip)
  if kind == SDXL:
    tables["text_encoder_2"] = openclip_names(tensors, _XL_OPENCLIP)
  elif kind == SD2:
    # 2.x reads the layer before the last of 24, and its configs do without that one.
    unused = re.compile(r"text_projection|text_model\.encoder\.layers\.23\.")
    tables["text_encoder"] = {
      name: entry for name, entry in tables["text_encoder"].items() if not unused.match(name)
    }
  unet = _unet_config(tensors, tables["unet"], kind)
  prediction = prediction_type or _prediction(tensors, kind, unet["in_channels"], origin)
  size = {SD1: 512, SD2: 768 if prediction == "v_prediction" else 512, SDXL: 1024}[kind]
  configs = {"unet": unet | {"sample_size": size // 8}}
  scale = 0.13025 if kind == SDXL else 0.18215
  fields = dict(zip(VAE_FIELDS, (scale, size, True)))
  if vae:
    configs["vae"] = _vae_config(tensors, tables["vae"]) | fields
  for part in ("text_encoder", "text_encoder_2"):
    if part in tables:
      configs[part] = _text_config(tensors, tables[part], kind, part)
  if ema:
    # PyTorch Lightning's averages drop the dots of the names.
    tables["unet"] = {
      name: (_EMA + theirs.removeprefix("model.").replace(".", ""), take)
      for name, (theirs, take) in tables["unet"].items()
    }
    if lost := [theirs for theirs, _ in tables["unet"].values() if theirs not in averaged]:
      raise MissingDataError(f"{origin} has no averaged weights {lost[0]}: leave out `ema`")
  scheduler = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": prediction,
  }
  if "ztsnr" in tensors:  # Says, beside `v_pred`, that training ended in pure noise.
    scheduler["rescale_betas_zero_snr"] = True
  renamed = {part: Renamed(tensors, table) for part, table in tables.items()}
  return Parts(kind, configs, dict(renamed), scheduler, fields)


def _prediction(tensors: Tensors, kind: str, in_channels: int, origin: str) -> str:
  said = tensors.metadata.get("modelspec.prediction_type", "")
  if said in ("v", *PREDICTIONS):
    return "v_prediction" if said == "v" else said
  if "v_pred" in tensors:
    return "v_prediction"
  if kind != SD2 or in_channels != 4:
    return "epsilon"
  steps = tensors["global_step"] if "global_step" in tensors else None
  found = "epsilon" if steps is not None and int(steps) == 875000 else "v_prediction"
  _log.info(
    "%s does not say what it predicts; taken for %s: config.model.prediction_type says otherwise",
    origin,
    found,
  )
  return found


# The tables of names. -----------------------------------------------------------------------------

_UNET_TOP = {
  "time_embed.0": "time_embedding.linear_1",
  "time_embed.2": "time_embedding.linear_2",
  "label_emb.0.0": "add_embedding.linear_1",
  "label_emb.0.2": "add_embedding.linear_2",
  "input_blocks.0.0": "conv_in",
  "out.0": "conv_norm_out",
  "out.2": "conv_out",
}
_UNET_RESNET = {
  "in_layers.0": "norm1",
  "in_layers.2": "conv1",
  "emb_layers.1": "time_emb_proj",
  "out_layers.0": "norm2",
  "out_layers.3": "conv2",
  "skip_connection": "conv_shortcut",
}
_VAE_ATTENTION = {
  "norm": "group_norm",
  "q": "to_q",
  "k": "to_k",
  "v": "to_v",
  "proj_out": "to_out.0",
}
_OPENCLIP_TOP = {
  "positional_embedding": "text_model.embeddings.position_embedding.weight",
  "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
  "ln_final.weight": "text_model.final_layer_norm.weight",
  "ln_final.bias": "text_model.final_layer_norm.bias",
}
_OPENCLIP_LAYER = {
  "ln_1": "layer_norm1",
  "ln_2": "layer_norm2",
  "attn.out_proj": "self_attn.out_proj",
  "mlp.c_fc": "mlp.fc1",
  "mlp.c_proj": "mlp.fc2",
}

Table = dict[str, tuple[str, Take | None]]


def unet_names(names: Collection[str], prefix: str = _UNET) -> Table:
  """Returns diffusers' names of the U-Net's tensors: name -> (name in the file, None).

  >>> unet_names(["out.2.bias", "input_blocks.2.0.op.bias"], "")
  {'conv_out.bias': ('out.2.bias', None), 'down_blocks.0.downsamplers.0.conv.bias': \
('input_blocks.2.0.op.bias', None)}
  """
  inner = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
  # A level is its layers and, but for the last one, what halves the map.
  halving = [int(m[1]) for n in inner if (m := re.fullmatch(r"input_blocks\.(\d+)\.0\.op\.\w+", n))]
  blocks = _count(inner, r"input_blocks\.(\d+)\.")
  layers = (min(halving) if halving else blocks) - 1
  return {_unet_name(name, layers): (prefix + name, None) for name in inner}


def _unet_name(name: str, layers: int) -> str:
  module, _, leaf = name.rpartition(".")
  if module in _UNET_TOP:
    return f"{_UNET_TOP[module]}.{leaf}"
  if found := re.fullmatch(r"middle_block\.([012])\.(.+)", module):
    kind = "attentions.0" if found[1] == "1" else f"resnets.{int(found[1]) // 2}"
    return f"mid_block.{kind}.{_UNET_RESNET.get(found[2], found[2])}.{leaf}"
  found = re.fullmatch(r"(input|output)_blocks\.(\d+)\.([012])\.(.+)", module)
  if not found:
    return name
  down = found[1] == "input"
  level, layer = divmod(int(found[2]) - down, layers + 1)
  place = f"{'down' if down else 'up'}_blocks.{level}"
  if found[4] in ("op", "conv"):
    return f"{place}.{'down' if down else 'up'}samplers.0.conv.{leaf}"
  if found[3] == "0":
    return f"{place}.resnets.{layer}.{_UNET_RESNET.get(found[4], found[4])}.{leaf}"
  return f"{place}.attentions.{layer}.{found[4]}.{leaf}"


def vae_names(names: Collection[str], prefix: str = _VAE) -> Table:
  """Returns diffusers' names of the VAE's tensors; names that are diffusers' already stay.

  >>> vae_names(["encoder.mid.block_2.conv1.bias"], "")
  {'encoder.mid_block.resnets.1.conv1.bias': ('encoder.mid.block_2.conv1.bias', None)}
  """
  inner = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
  kept = [n for n in inner if n.split(".")[0] in ("encoder", "decoder", "quant_conv",
          "post_quant_conv")]  # fmt: skip
  levels = _count(kept, r"decoder\.up\.(\d+)\.")
  table: Table = {}
  for name in kept:
    new = _vae_name(name, levels)
    # Products over channels are 1x1 convolutions in these files.
    is_product = bool(re.search(r"attentions\.0\.to_.*weight$", new))
    table[new] = (prefix + name, _without_map if is_product else None)
  return table


def _vae_name(name: str, levels: int) -> str:
  name = name.replace(".nin_shortcut.", ".conv_shortcut.").replace(".norm_out.", ".conv_norm_out.")
  if found := re.fullmatch(r"(\w+)\.mid\.block_([12])\.(.+)", name):
    return f"{found[1]}.mid_block.resnets.{int(found[2]) - 1}.{found[3]}"
  if found := re.fullmatch(r"(\w+)\.mid\.attn_1\.(\w+)\.(\w+)", name):
    return f"{found[1]}.mid_block.attentions.0.{_VAE_ATTENTION.get(found[2], found[2])}.{found[3]}"
  if found := re.fullmatch(r"(\w+)\.(down|up)\.(\d+)\.(block\.(\d+)|\w+sample)\.(.+)", name):
    side, way, level = found[1], found[2], int(found[3])
    # The original counts levels of the decoder from the finest one.
    place = f"{side}.{way}_blocks.{levels - 1 - level if way == 'up' else level}"
    what = f"{way}samplers.0" if found[5] is None else f"resnets.{found[5]}"
    return f"{place}.{what}.{found[6]}"
  return name


def clip_names(names: Collection[str], prefix: str = _CLIP) -> Table:
  """Returns transformers' names of a text encoder's tensors, which differ by a prefix.

  >>> clip_names(["cond_stage_model.transformer.text_model.final_layer_norm.bias"])
  {'text_model.final_layer_norm.bias': \
('cond_stage_model.transformer.text_model.final_layer_norm.bias', None)}
  """
  return {name.removeprefix(prefix): (name, None) for name in names if name.startswith(prefix)}


def openclip_names(names: Collection[str], prefix: str = _OPENCLIP) -> Table:
  """Returns transformers' names of an OpenCLIP text encoder's tensors.

  Query, key and value are one matrix there, and the projection is transposed.

  >>> list(openclip_names(["transformer.resblocks.0.attn.in_proj_bias"], ""))[0]
  'text_model.encoder.layers.0.self_attn.q_proj.bias'
  """
  table: Table = {}
  for name in names:
    if not name.startswith(prefix):
      continue
    inner = name.removeprefix(prefix)
    if inner in ("logit_scale", "attn_mask"):
      continue
    if inner == "text_projection":
      table["text_projection.weight"] = (name, np.transpose)
    elif found := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", inner):
      layer = f"text_model.encoder.layers.{found[1]}"
      if found[2] == "attn.in_proj":
        for i, what in enumerate("qkv"):
          table[f"{layer}.self_attn.{what}_proj.{found[3]}"] = (name, _THIRDS[i])
      else:
        table[f"{layer}.{_OPENCLIP_LAYER.get(found[2], found[2])}.{found[3]}"] = (name, None)
    else:
      table[_OPENCLIP_TOP.get(inner, inner)] = (name, None)
  return table


def _third(number: int) -> Take:
  def take(array: np.ndarray) -> np.ndarray:
    size = len(array) // 3
    return array[number * size : (number + 1) * size]

  return take


_THIRDS = tuple(_third(number) for number in range(3))


def _without_map(array: np.ndarray) -> np.ndarray:
  return array.reshape(array.shape[:2])


def _count(names: Collection[str], pattern: str) -> int:
  """Returns one more than the largest number that the pattern finds in names; 0 without any.

  Raises:
    ValueError: the number is larger than any model's.
  """
  found = max((int(m[1]) + 1 for name in names if (m := re.match(pattern, name))), default=0)
  if found > _MOST:
    raise ValueError(f"numbers up to {_MOST}")
  return found


# Configs from shapes. -----------------------------------------------------------------------------


def _shape(tensors: Tensors, table: Table, name: str) -> tuple[int, ...]:
  return tensors.shape(table[name][0])


def _unet_config(tensors: Tensors, table: Table, kind: str) -> dict[str, Any]:
  """Returns the fields of a U-Net's config.json but for sample_size.

  Shapes do not show the number of attention heads: 8 in 1.x, one per 64 channels in 2.x and XL.
  """
  levels = _count(table, r"down_blocks\.(\d+)\.")
  layers = _count(table, r"down_blocks\.0\.resnets\.(\d+)\.")
  channels, depths = [], []
  for level in range(levels):
    place = f"down_blocks.{level}"
    channels.append(_shape(tensors, table, f"{place}.resnets.0.conv1.weight")[0])
    depths.append(_count(table, re.escape(place) + r"\.attentions\.0\.transformer_blocks\.(\d+)\."))
  if not levels or not layers:
    raise KeyError("blocks of the U-Net")
  text = next(name for name in table if name.endswith("attn2.to_k.weight"))
  linear = len(_shape(tensors, table, "mid_block.attentions.0.proj_in.weight")) == 2
  config: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "in_channels": _shape(tensors, table, "conv_in.weight")[1],
    "out_channels": _shape(tensors, table, "conv_out.weight")[0],
    "block_out_channels": channels,
    "down_block_types": ["CrossAttnDownBlock2D" if n else "DownBlock2D" for n in depths],
    "up_block_types": ["CrossAttnUpBlock2D" if n else "UpBlock2D" for n in depths[::-1]],
    "layers_per_block": layers,
    "cross_attention_dim": _shape(tensors, table, text)[1],
    "use_linear_projection": linear,
    "attention_head_dim": 8 if kind == SD1 else [n // 64 for n in channels],
  }
  if max(depths) > 1:
    config["transformer_layers_per_block"] = [max(n, 1) for n in depths]
  if "add_embedding.linear_1.weight" in table:
    if kind == SDXL:
      config |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
    else:  # Models of pictures' embeddings, or of noise levels: refused with the config.
      config["class_embed_type"] = "projection"
    width = _shape(tensors, table, "add_embedding.linear_1.weight")[1]
    config["projection_class_embeddings_input_dim"] = width
  return config


def _vae_config(tensors: Tensors, table: Table) -> dict[str, Any]:
  """Returns the fields of a VAE's config.json that shapes show."""
  levels = _count(table, r"encoder\.down_blocks\.(\d+)\.")
  channels = [
    _shape(tensors, table, f"encoder.down_blocks.{level}.resnets.0.conv1.weight")[0]
    for level in range(levels)
  ]
  return {
    "_class_name": "AutoencoderKL",
    "in_channels": _shape(tensors, table, "encoder.conv_in.weight")[1],
    "out_channels": _shape(tensors, table, "decoder.conv_out.weight")[0],
    "latent_channels": _shape(tensors, table, "decoder.conv_in.weight")[1],
    "block_out_channels": channels,
    "down_block_types": ["DownEncoderBlock2D"] * levels,
    "up_block_types": ["UpDecoderBlock2D"] * levels,
    "layers_per_block": _count(table, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
    "use_quant_conv": "quant_conv.weight" in table,
    "use_post_quant_conv": "post_quant_conv.weight" in table,
  }


def _text_config(tensors: Tensors, table: Table, kind: str, part: str) -> dict[str, Any]:
  """Returns the fields of a text encoder's config.json.

  Shapes do not show the number of heads, one per 64 channels, nor the activation: OpenCLIP's is
  GELU, OpenAI's its sigmoid form.
  """
  place = "text_model." if any(name.startswith("text_model.") for name in table) else ""
  vocab, width = _shape(tensors, table, f"{place}embeddings.token_embedding.weight")
  openclip = kind == SD2 or part == "text_encoder_2"
  projection = width
  if "text_projection.weight" in table:
    projection = _shape(tensors, table, "text_projection.weight")[1]
  elif kind == SD2:
    projection = 512  # As in the published config; 2.x has no projection.
  return {
    "architectures": [
      "CLIPTextModelWithProjection" if part == "text_encoder_2" else "CLIPTextModel"
    ],
    "model_type": "clip_text_model",
    "vocab_size": vocab,
    "hidden_size": width,
    "intermediate_size": _shape(tensors, table, f"{place}encoder.layers.0.mlp.fc1.weight")[0],
    "num_hidden_layers": _count(table, re.escape(place) + r"encoder\.layers\.(\d+)\."),
    "num_attention_heads": max(width // 64, 1),
    "max_position_embeddings": _shape(
      tensors, table, f"{place}embeddings.position_embedding.weight"
    )[0],
    "hidden_act": "gelu" if openclip else "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": projection,
    "bos_token_id": vocab - 2,
    "eos_token_id": vocab - 1,
    "pad_token_id": 0 if openclip else vocab - 1,
  }
