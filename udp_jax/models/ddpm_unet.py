"""The U-Net of Ho et al. 2020 (DDPM, arXiv:2006.11239, appendix B) in flax.linen.

Further fields make it that of Dhariwal & Nichol 2021 (ADM, arXiv:2105.05233; `models.adm` reads its
files): time as scale and shift, and residual blocks that change the resolution.

The parameter tree uses the names of diffusers' `UNet2DModel` with `.N` written `_N`, so that
`models.weights` converts both ways by rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from udp_jax.errors import ConfigError
from udp_jax.models import config_fields
from udp_jax.models.layers import (
  MIDDLE,
  AttentionBlock,
  Resample,
  ResnetBlock,
  down_and_up,
  embedded_time,
)
from udp_jax.ops.attention import AttentionFn, dot_product_attention

_DOWN = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
_UP = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
_ALLOWED = {
  "resnet_time_scale_shift": ("default", "scale_shift"),
  "downsample_type": ("conv", "resnet"),
  "upsample_type": ("conv", "resnet"),
}


@dataclasses.dataclass(frozen=True)
class UNet2DConfig:
  """The fields of diffusers' `UNet2DModel` config that our models use.

  The defaults are the CIFAR-10 model of Ho et al. (`google/ddpm-cifar10-32`), 35.7 M parameters.
  `attention_head_dim=None` means one head. `dropout` acts only during training. `downsample_type`
  and `upsample_type`, "conv" or "resnet", are for blocks with attention, as in diffusers; without
  it, "ResnetDownsampleBlock2D" and "ResnetUpsampleBlock2D" have residual blocks there. Twice as
  many `out_channels` as `in_channels` are a prediction and a learned variance.
  """

  sample_size: int = 32
  in_channels: int = 3
  out_channels: int = 3
  block_out_channels: tuple[int, ...] = (128, 256, 256, 256)
  down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D") + ("DownBlock2D",) * 2
  up_block_types: tuple[str, ...] = ("UpBlock2D",) * 2 + ("AttnUpBlock2D", "UpBlock2D")
  layers_per_block: int = 2
  attention_head_dim: int | None = None
  norm_num_groups: int = 32
  norm_eps: float = 1e-6
  downsample_padding: int = 0
  flip_sin_to_cos: bool = False
  freq_shift: int = 1
  dropout: float = 0.0
  add_attention: bool = True
  resnet_time_scale_shift: str = "default"
  downsample_type: str = "conv"
  upsample_type: str = "conv"
  attn_norm_num_groups: int | None = None

  def __post_init__(self):
    config_fields.check(self)
    levels = len(self.block_out_channels)
    if not (levels and self.norm_num_groups and min(self.block_out_channels)):
      raise ConfigError("block_out_channels and norm_num_groups must be positive")
    if levels != len(self.down_block_types) or levels != len(self.up_block_types):
      raise ConfigError("block_out_channels, down_block_types and up_block_types differ in length")
    for kind in (*self.down_block_types, *self.up_block_types):
      if kind not in _DOWN + _UP:
        raise ConfigError(f"unknown U-Net block {kind!r}; known: {', '.join(_DOWN + _UP)}")
    # Without this field, diffusers' middle attention has no norm beside scale and shift.
    scaled = self.resnet_time_scale_shift == "scale_shift"
    groups = self.attn_norm_num_groups or (None if scaled else self.norm_num_groups)
    if self.add_attention and groups != self.norm_num_groups:
      raise ConfigError(
        f"UNet2DModel config: attn_norm_num_groups={self.attn_norm_num_groups!r} is not supported "
        f"with norm_num_groups={self.norm_num_groups}, resnet_time_scale_shift="
        f"{self.resnet_time_scale_shift!r}"
      )
    for name, allowed in _ALLOWED.items():
      if getattr(self, name) not in allowed:
        raise ConfigError(f"UNet2DModel config: {name}={getattr(self, name)!r} is not supported")
    for channels in self.block_out_channels:
      if channels % self.norm_num_groups:
        raise ConfigError(f"{channels} channels do not divide into {self.norm_num_groups} groups")
    for channels in self._attended() if self.attention_head_dim is not None else ():
      if not self.attention_head_dim or channels % self.attention_head_dim:
        raise ConfigError(
          f"{channels} channels do not divide into heads of {self.attention_head_dim} channels"
        )

  def _attended(self) -> set[int]:
    """Returns the channel counts of levels with attention."""
    channels = self.block_out_channels
    levels = [*zip(self.down_block_types, channels), *zip(self.up_block_types, channels[::-1])]
    middle = {channels[-1]} if self.add_attention else set()
    return middle | {size for kind, size in levels if "Attn" in kind}

  @classmethod
  def from_dict(cls, config: Mapping[str, Any]) -> UNet2DConfig:
    """Reads a diffusers `config.json`. Raises ConfigError for unsupported settings."""
    fixed = {
      "act_fn": ("silu", "swish"),
      "center_input_sample": (False,),
      "time_embedding_type": ("positional",),
      "class_embed_type": (None,),
      "num_class_embeds": (None,),
      "mid_block_scale_factor": (1, 1.0),
    }
    for name, allowed in fixed.items():
      if config.get(name, allowed[0]) not in allowed:
        raise ConfigError(f"UNet2DModel config: {name}={config[name]!r} is not supported")
    known = {field.name for field in dataclasses.fields(cls)}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in known}
    # A missing field means diffusers' default, where that differs from ours.
    theirs: dict[str, Any] = {"attention_head_dim": 8, "norm_eps": 1e-5, "downsample_padding": 1}
    theirs |= {"flip_sin_to_cos": True, "freq_shift": 0}
    return cls(**(theirs | values))

  def to_dict(self) -> dict[str, Any]:
    """Returns the diffusers `config.json` of this model, without `_class_name`."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
    return values | {"act_fn": "silu", "time_embedding_type": "positional"}


class Block(nn.Module):
  """One level of the U-Net, or its middle: resnets, attention and a change of resolution."""

  config: UNet2DConfig
  features: int
  layers: int
  attention: AttentionFn | None = None
  resample: str | None = None
  method: str | None = None
  remat: bool = False
  fused: bool = True
  by_resnet: bool = False

  @nn.compact
  def __call__(self, x, temb, skips, seeds):
    """Consumes a list of `skips` (up) or produces skips if None (down); returns (x, outputs)."""
    c = self.config
    norm = c.norm_num_groups, c.norm_eps
    scaled = c.resnet_time_scale_shift == "scale_shift"
    resnet = nn.remat(ResnetBlock) if self.remat else ResnetBlock
    outputs = []
    middle = self.resample is None and skips == ()
    for i in range(self.layers):
      if skips:
        x = jnp.concatenate([x, skips[-1 - i]], axis=-1)
      layer = resnet(self.features, *norm, c.dropout, self.method, scaled, name=f"resnets_{i}")
      x = layer(x, temb, seeds)
      if self.attention is not None and not (middle and i == self.layers - 1):
        options = (*norm, c.attention_head_dim, self.attention, self.method, self.fused)
        x = AttentionBlock(*options, name=f"attentions_{i}")(x)
      outputs.append(x)
    if self.resample and self.by_resnet:
      resized = (*norm, c.dropout, self.method, scaled, self.resample)
      x = resnet(self.features, *resized, name=f"{self.resample}samplers_0")(x, temb, seeds)
      outputs.append(x)
    elif self.resample:
      resample = Resample(
        self.features,
        self.resample == "up",
        c.downsample_padding,
        self.method,
        name=f"{self.resample}samplers_0",
      )
      x = resample(x)
      outputs.append(x)
    return x, outputs


class UNet2D(nn.Module):
  """Predicts epsilon_theta(x_t, t): (B, H, W, C) and (B,) -> (B, H, W, C).

  Attributes:
    config: architecture.
    dtype: dtype of the computation; parameters stay float32.
    conv_method: one of `ops.conv.METHODS`; None picks by backend.
    attention: exchangeable attention function.
    remat: whether to recompute each residual block in the backward pass.
    fused: whether query, key and value of an attention are one product.
  """

  config: UNet2DConfig
  dtype: Any = jnp.float32
  conv_method: str | None = None
  attention: AttentionFn = dot_product_attention
  remat: bool = False
  fused: bool = True

  @nn.compact
  def __call__(
    self, x_t: jax.Array, timesteps: jax.Array, *, seeds: jax.Array | None = None
  ) -> jax.Array:
    """Predicts the schedule's target (noise, ...) from x_t; `seeds` (B,) uint32 enable dropout."""
    c = self.config
    temb = embedded_time(c, timesteps, self.dtype, method=self.conv_method)

    def level(name, i, layers, kind, resample, x, skips):
      attention = self.attention if "Attn" in kind else None
      types = {"down": c.downsample_type, "up": c.upsample_type}
      by_resnet = kind.startswith("Resnet") or ("Attn" in kind and types.get(resample) == "resnet")
      options = (attention, resample, self.conv_method, self.remat, self.fused, by_resnet)
      block = Block(c, c.block_out_channels[i], layers, *options, name=name)
      return block(x, temb, () if name == MIDDLE else skips, seeds)

    middle = "Attn" if c.add_attention else ""
    return down_and_up(c, x_t.astype(self.dtype), level, middle, method=self.conv_method)
