"""ADM, the diffusion models of Dhariwal & Nichol 2021 (arXiv:2105.05233), from converted files.

DiffPure and GrIDPure purify with the unconditional one for 256x256 pictures of ImageNet. A folder
holds

  config.json         {"_class_name": "ADM", ...} with the flags that the model was made with, under
                      guided-diffusion's names (`num_channels`, `attention_resolutions`, ...)
  model.safetensors   its state dict, under guided-diffusion's names

The published checkpoint is a pickle, which is never opened here because it can run code. Where
PyTorch is installed, `safetensors.torch.save_file(torch.load(FILE, weights_only=True), OUT)`
converts it. The network is `ddpm_unet.UNet2D` with time as scale and shift, residual blocks that
change the resolution, and attention heads of a fixed width; this module translates names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from udp_jax.errors import BadDataError, ConfigError
from udp_jax.models.ddpm_unet import UNet2DConfig
from udp_jax.ops import schedules
from udp_jax.ops.schedules import NoiseSchedule

CLASS = "ADM"
# Flags of the unconditional model of 256x256 pictures of ImageNet: 552.8 M parameters.
IMAGENET_256 = {
  "image_size": 256,
  "num_channels": 256,
  "num_res_blocks": 2,
  "num_head_channels": 64,
  "attention_resolutions": "32,16,8",
  "learn_sigma": True,
  "use_scale_shift_norm": True,
  "resblock_updown": True,
  "noise_schedule": "linear",
  "diffusion_steps": 1000,
}
# What guided-diffusion takes for a flag that is not given.
_DEFAULTS: dict[str, Any] = {
  "image_size": 64,
  "num_channels": 128,
  "num_res_blocks": 2,
  "num_head_channels": -1,
  "attention_resolutions": "16,8",
  "channel_mult": "",
  "dropout": 0.0,
  "use_scale_shift_norm": True,
  "resblock_updown": False,
  "use_new_attention_order": False,
  "learn_sigma": False,
  "diffusion_steps": 1000,
  "noise_schedule": "linear",
  "predict_xstart": False,
}
_MULTIPLES = {512: (0.5, 1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4)}
_MULTIPLES[64] = (1, 2, 3, 4)
# Flags that change what the network is, and the only values that are supported.
_FIXED = {"class_cond": False, "rescale_timesteps": False, "timestep_respacing": ""}
_GROUPS = 32
_RESNET = {
  "in_layers.0": "norm1",
  "in_layers.2": "conv1",
  "emb_layers.1": "time_emb_proj",
  "out_layers.0": "norm2",
  "out_layers.3": "conv2",
  "skip_connection": "conv_shortcut",
}
_ATTENTION = {"norm": "group_norm", "qkv": "qkv", "proj_out": "to_out.0"}
_ENDS = {
  "time_embed.0": "time_embedding.linear_1",
  "time_embed.2": "time_embedding.linear_2",
  "input_blocks.0.0": "conv_in",
  "out.0": "conv_norm_out",
  "out.2": "conv_out",
}


def unet_config(flags: Mapping[str, Any]) -> UNet2DConfig:
  """Returns the U-Net's fields for guided-diffusion's flags.

  Raises:
    ConfigError: a flag has a value that is not supported, such as a class-conditional model.

  >>> unet_config(IMAGENET_256).block_out_channels
  (256, 256, 512, 512, 1024, 1024)
  """
  given = {**_DEFAULTS, **flags}
  for name, value in _FIXED.items():
    if given.get(name, value) != value:
      raise ConfigError(f"ADM config: {name}={given[name]!r} is not supported")
  try:
    multiples = _numbers(given["channel_mult"]) or _MULTIPLES[given["image_size"]]
    attended = {given["image_size"] // int(n) for n in _numbers(given["attention_resolutions"])}
  except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
    raise ConfigError(
      "ADM config: image_size, channel_mult or attention_resolutions cannot be read"
    ) from error
  if multiples[0] != 1:
    raise ConfigError("ADM config: a channel_mult that does not start with 1 is not supported")
  if not isinstance(given["num_head_channels"], int) or given["num_head_channels"] < 1:
    raise ConfigError("ADM config: num_head_channels is needed: heads of a fixed width")
  by_resnet, last = bool(given["resblock_updown"]), len(multiples) - 1
  plain = ("ResnetDownsample", "ResnetUpsample") if by_resnet else ("Down", "Up")
  attends = [2**level in attended for level in range(last + 1)]
  down, up = (
    tuple(f"{f'Attn{way}' if attends[level] else kind}Block2D" for level in range(last + 1))
    for way, kind in zip(("Down", "Up"), plain)
  )
  resample = "resnet" if by_resnet else "conv"
  return UNet2DConfig(
    sample_size=given["image_size"],
    out_channels=6 if given["learn_sigma"] else 3,
    block_out_channels=tuple(int(given["num_channels"] * multiple) for multiple in multiples),
    down_block_types=down,
    up_block_types=up[::-1],
    layers_per_block=given["num_res_blocks"],
    attention_head_dim=given["num_head_channels"],
    norm_num_groups=_GROUPS,
    norm_eps=1e-5,
    downsample_padding=1,
    flip_sin_to_cos=True,
    freq_shift=0,
    dropout=given["dropout"],
    resnet_time_scale_shift="scale_shift" if given["use_scale_shift_norm"] else "default",
    downsample_type=resample,
    upsample_type=resample,
    attn_norm_num_groups=_GROUPS,
  )


def schedule(flags: Mapping[str, Any]) -> NoiseSchedule:
  """Returns the noise schedule of guided-diffusion's flags.

  Raises:
    ConfigError: the schedule is unknown, or has fewer than 21 steps, whose betas would exceed 1.

  >>> schedule({}).num_steps
  1000
  """
  given = {**_DEFAULTS, **flags}
  steps, kind = given["diffusion_steps"], given["noise_schedule"]
  predicts = "sample" if given["predict_xstart"] else "epsilon"
  if not isinstance(steps, int) or steps < 21 or kind not in ("linear", "cosine"):
    raise ConfigError(f"ADM config: noise_schedule={kind!r} of {steps!r} steps is not supported")
  if kind == "cosine":
    return schedules.cosine(steps, prediction_type=predicts)
  ends = {"beta_start": 0.1 / steps, "beta_end": 20.0 / steps}
  return schedules.linear(steps, prediction_type=predicts, **ends)


def renamed(tensors: Mapping[str, np.ndarray], flags: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Renames a state dict of guided-diffusion to `UNet2DModel`'s names.

  Args:
    tensors: name -> array.
    flags: the model's flags, which decide what the numbers in the names mean.

  Raises:
    ConfigError: as `unet_config`.
    BadDataError: a name does not belong to this model, or an attention has another shape.
  """
  config = unet_config(flags)
  ours = dict(_names(config))
  head_dim = config.attention_head_dim
  assert head_dim is not None  # `unet_config` refuses other models.
  made: dict[str, np.ndarray] = {}
  for name, value in tensors.items():
    module, _, leaf = name.rpartition(".")
    if module not in ours:
      raise BadDataError(f"{name} is no tensor of this ADM; does config.json belong to it?")
    if not module.endswith(".qkv"):
      # Products of attention are stored as convolutions of width 1.
      made[f"{ours[module]}.{leaf}"] = value[..., 0] if value.ndim == 3 else value
      continue
    heads, beside = divmod(value.shape[0], 3 * head_dim)
    if beside:
      raise BadDataError(f"{name} has shape {value.shape}: no heads of {head_dim} channels")
    inputs = value.shape[1:2]
    if flags.get("use_new_attention_order"):
      parts = value.reshape(3, heads, head_dim, *inputs)
    else:  # Query, key and value of the first head, then of the second, ...
      parts = value.reshape(heads, 3, head_dim, *inputs).swapaxes(0, 1)
    for part, own in zip(parts, ("to_q", "to_k", "to_v"), strict=True):
      home = ours[module].removesuffix("qkv")
      made[f"{home}{own}.{leaf}"] = part.reshape(heads * head_dim, *inputs)
  return made


def _names(config: UNet2DConfig) -> Iterator[tuple[str, str]]:
  """Yields guided-diffusion's name and ours of every module with parameters."""
  yield from _ENDS.items()
  last, layers = len(config.block_out_channels) - 1, config.layers_per_block

  def resampled(theirs: str, ours: str, kind: str) -> Iterator[tuple[str, str]]:
    if kind.startswith("Resnet") or ("Attn" in kind and config.downsample_type == "resnet"):
      yield from _within(theirs, ours, _RESNET)
    else:
      yield f"{theirs}.{'op' if 'down' in ours else 'conv'}", f"{ours}.conv"

  number = 1
  for level, kind in enumerate(config.down_block_types):
    for layer in range(layers):
      theirs, home = f"input_blocks.{number}", f"down_blocks.{level}"
      yield from _within(f"{theirs}.0", f"{home}.resnets.{layer}", _RESNET)
      if "Attn" in kind:
        yield from _within(f"{theirs}.1", f"{home}.attentions.{layer}", _ATTENTION)
      number += 1
    if level < last:
      yield from resampled(f"input_blocks.{number}.0", f"down_blocks.{level}.downsamplers.0", kind)
      number += 1
  yield from _within("middle_block.0", "mid_block.resnets.0", _RESNET)
  yield from _within("middle_block.1", "mid_block.attentions.0", _ATTENTION)
  yield from _within("middle_block.2", "mid_block.resnets.1", _RESNET)
  number = 0
  for level, kind in enumerate(config.up_block_types):
    attends = "Attn" in kind
    for layer in range(layers + 1):
      theirs, home = f"output_blocks.{number}", f"up_blocks.{level}"
      yield from _within(f"{theirs}.0", f"{home}.resnets.{layer}", _RESNET)
      if attends:
        yield from _within(f"{theirs}.1", f"{home}.attentions.{layer}", _ATTENTION)
      if layer == layers and level < last:
        yield from resampled(f"{theirs}.{1 + attends}", f"{home}.upsamplers.0", kind)
      number += 1


def _within(theirs: str, ours: str, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
  for one, other in names.items():
    yield f"{theirs}.{one}", f"{ours}.{other}"


def _numbers(value: Any) -> tuple[int, ...]:
  """Parses "1,2,4"; a list stays what it is."""
  if isinstance(value, str):
    return tuple(int(word) for word in value.split(",") if word.strip())
  return tuple(value)
