"""The conditional U-Net of Stable Diffusion (Rombach et al., arXiv:2112.10752) in flax.linen.

It covers versions 1.x, 2.x, XL (Podell et al., arXiv:2307.01952) and their inpainting variants, at
any size. The parameter tree uses the
names of diffusers' `UNet2DConditionModel` with `.N` written `_N`, so that `models.weights` converts
both ways by rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from udp_jax.errors import ConfigError
from udp_jax.models.conditioning import NUM_SIZES
from udp_jax.models.layers import (
  MIDDLE,
  Resample,
  ResnetBlock,
  down_and_up,
  embedded_time,
)
from udp_jax.models.transformer import Transformer2D
from udp_jax.ops.attention import AttentionFn, dot_product_attention

_DOWN = ("DownBlock2D", "CrossAttnDownBlock2D")
_UP = ("UpBlock2D", "CrossAttnUpBlock2D")

# Fields of diffusers' config that select an architecture, and the values that select this one; the
# first value is the default of a missing field.
_FIXED: dict[str, tuple[Any, ...]] = {
  "act_fn": ("silu", "swish"),
  "attention_type": ("default",),
  "center_input_sample": (False,),
  "class_embed_type": (None,),
  "class_embeddings_concat": (False,),
  "conv_in_kernel": (3,),
  "conv_out_kernel": (3,),
  "cross_attention_norm": (None,),
  "dual_cross_attention": (False,),
  "encoder_hid_dim": (None,),
  "encoder_hid_dim_type": (None,),
  "mid_block_only_cross_attention": (None, False),
  "mid_block_scale_factor": (1,),
  "mid_block_type": ("UNetMidBlock2DCrossAttn",),
  "num_attention_heads": (None,),
  "num_class_embeds": (None,),
  "only_cross_attention": (False,),
  "resnet_out_scale_factor": (1.0,),
  "resnet_skip_time_act": (False,),
  "resnet_time_scale_shift": ("default",),
  "reverse_transformer_layers_per_block": (None,),
  "time_cond_proj_dim": (None,),
  "time_embedding_act_fn": (None,),
  "time_embedding_dim": (None,),
  "time_embedding_type": ("positional",),
  "timestep_post_act": (None,),
}
# Fields without effect given the values above.
_IGNORED = ("addition_embed_type_num_heads",)
# Fields of XL alone, which `to_dict` leaves out for other models.
_OF_XL = {
  "transformer_layers_per_block": 1,
  "addition_embed_type": None,
  "addition_time_embed_dim": None,
  "projection_class_embeddings_input_dim": None,
}


@dataclasses.dataclass(frozen=True)
class UNet2DConditionConfig:
  """The fields of diffusers' `UNet2DConditionModel` config that our models use.

  The defaults are Stable Diffusion 1.4 and 1.5 (859,520,964 parameters).

  `attention_head_dim` is the *number of heads*, for all levels or by level; diffusers kept the
  field's misleading name. `upcast_attention` has no effect, because our softmax is always float32;
  it is kept for saving. `sample_size` is the side of the latents in training; other multiples of
  2 ** (levels - 1) work too. `transformer_layers_per_block` is the number of transformer blocks of
  each attention, for all levels or by level.

  The other fields are XL's: `addition_embed_type` is "text_time" for networks that are also told a
  pooled text and six sizes; each size becomes `addition_time_embed_dim` sinusoids, and together
  with the pooled text these are `projection_class_embeddings_input_dim` values.
  """

  sample_size: int = 64
  in_channels: int = 4
  out_channels: int = 4
  block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
  down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
  up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
  layers_per_block: int = 2
  attention_head_dim: int | tuple[int, ...] = 8
  cross_attention_dim: int = 768
  use_linear_projection: bool = False
  upcast_attention: bool = False
  norm_num_groups: int = 32
  norm_eps: float = 1e-5
  downsample_padding: int = 1
  flip_sin_to_cos: bool = True
  freq_shift: int = 0
  dropout: float = 0.0
  transformer_layers_per_block: int | tuple[int, ...] = 1
  addition_embed_type: str | None = None
  addition_time_embed_dim: int | None = None
  projection_class_embeddings_input_dim: int | None = None

  def __post_init__(self):
    levels = len(self.block_out_channels)
    if levels != len(self.down_block_types) or levels != len(self.up_block_types):
      raise ConfigError("block_out_channels, down_block_types and up_block_types differ in length")
    for kinds, known in ((self.down_block_types, _DOWN), (self.up_block_types, _UP)):
      for kind in kinds:
        if kind not in known:
          raise ConfigError(f"unknown U-Net block {kind!r}; known: {', '.join(known)}")
    if self.use_linear_projection not in (True, False):
      raise ConfigError(f"use_linear_projection={self.use_linear_projection!r} is no truth value")
    for name in ("layers_per_block", "cross_attention_dim", "norm_num_groups", "sample_size"):
      if type(value := getattr(self, name)) is not int or value < 1:
        raise ConfigError(f"U-Net config: {name}={value!r} is not supported, one number is wanted")
    if isinstance(self.attention_head_dim, tuple) and len(self.attention_head_dim) != levels:
      raise ConfigError("attention_head_dim must be one number of heads, or one for each level")
    layers = self.transformer_layers_per_block
    if len(self.depths) != levels or any(type(n) is not int or n < 1 for n in self.depths):
      raise ConfigError(
        f"U-Net config: transformer_layers_per_block={layers!r} is not supported: one number, or "
        "one for each level"
      )
    self._check_added()
    for channels, heads in zip(self.block_out_channels, self.heads):
      if channels % self.norm_num_groups:
        raise ConfigError(f"{channels} channels do not divide into {self.norm_num_groups} groups")
      if channels % heads:
        raise ConfigError(f"{channels} channels do not divide into {heads} attention heads")

  @property
  def heads(self) -> tuple[int, ...]:
    """Number of attention heads of each level."""
    heads = self.attention_head_dim
    return heads if isinstance(heads, tuple) else (heads,) * len(self.block_out_channels)

  @property
  def depths(self) -> tuple[int, ...]:
    """Number of transformer blocks in each attention, by level."""
    layers = self.transformer_layers_per_block
    return layers if isinstance(layers, tuple) else (layers,) * len(self.block_out_channels)

  @property
  def pooled_dim(self) -> int:
    """Width of the pooled text that the network is told; 0 if it is told none."""
    if self.addition_embed_type is None:
      return 0
    total, each = self.projection_class_embeddings_input_dim, self.addition_time_embed_dim
    return (total or 0) - NUM_SIZES * (each or 0)

  def _check_added(self) -> None:
    kind = self.addition_embed_type
    sizes = self.addition_time_embed_dim, self.projection_class_embeddings_input_dim
    if kind not in (None, "text_time"):
      raise ConfigError(
        f"UNet2DConditionModel config: addition_embed_type={kind!r} is not supported"
      )
    if kind is None:
      if sizes[1] is not None:
        raise ConfigError(
          f"UNet2DConditionModel config: projection_class_embeddings_input_dim={sizes[1]!r} is not "
          'supported without addition_embed_type="text_time"'
        )
    elif any(type(size) is not int for size in sizes) or self.pooled_dim < 1:
      raise ConfigError(
        f"U-Net config: addition_time_embed_dim={sizes[0]!r} and "
        f"projection_class_embeddings_input_dim={sizes[1]!r} leave no place for the pooled text"
      )

  @classmethod
  def from_dict(cls, config: Mapping[str, Any]) -> UNet2DConditionConfig:
    """Reads a diffusers `config.json`. Raises ConfigError for unsupported settings."""
    known = {field.name for field in dataclasses.fields(cls)}
    for name, value in config.items():
      if name.startswith("_") or name in known or name in _IGNORED:
        continue
      if name not in _FIXED:
        # A field newer than this module is harmless if it is switched off.
        if value is not None and value is not False:
          raise ConfigError(f"UNet2DConditionModel config: unknown field {name}={value!r}")
      elif value not in _FIXED[name]:
        raise ConfigError(f"UNet2DConditionModel config: {name}={value!r} is not supported")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in known}
    if values.get("sample_size", 0) is None:
      del values["sample_size"]
    # A missing field means diffusers' default, where that differs from ours.
    theirs: dict[str, Any] = {"cross_attention_dim": 1280}
    return cls(**(theirs | values))

  def to_dict(self) -> dict[str, Any]:
    """Returns the diffusers `config.json` of this model, without `_class_name`."""
    given = {k: v for k, v in vars(self).items() if k not in _OF_XL or v != _OF_XL[k]}
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}
    return values | {"act_fn": "silu", "mid_block_type": "UNetMidBlock2DCrossAttn"}


class _Level(nn.Module):
  """One level of the U-Net, or its middle: resnets, transformers and a change of resolution.

  `heads` is None for levels without attention. The middle has one transformer fewer than resnets.
  """

  config: UNet2DConditionConfig
  features: int
  layers: int
  heads: int | None = None
  resample: str | None = None
  middle: bool = False
  method: str | None = None
  attention: AttentionFn = dot_product_attention
  remat: bool = False
  text_attention: AttentionFn | None = None
  fused: bool = True
  depth: int = 1

  @nn.compact
  def __call__(self, x, temb, cond, skips, seeds):
    """Consumes a list of `skips` (up) or produces skips if None (down); returns (x, outputs)."""
    c = self.config
    resnet, transformer = ResnetBlock, Transformer2D
    if self.remat:
      resnet = nn.remat(ResnetBlock)
      # Of several blocks each is recomputed by itself: all of them at once would fill the memory.
      transformer = nn.remat(Transformer2D) if self.depth == 1 else Transformer2D
    outputs = []
    for i in range(self.layers):
      if skips is not None:
        x = jnp.concatenate([x, skips[-1 - i]], axis=-1)
      options = (self.features, c.norm_num_groups, c.norm_eps, c.dropout, self.method)
      x = resnet(*options, name=f"resnets_{i}")(x, temb, seeds)
      if self.heads is not None and not (self.middle and i == self.layers - 1):
        x = transformer(
          heads=self.heads,
          num_groups=c.norm_num_groups,
          linear_projection=c.use_linear_projection,
          attention=self.attention,
          method=self.method,
          text_attention=self.text_attention,
          fused=self.fused,
          depth=self.depth,
          remat=self.remat and self.depth > 1,
          name=f"attentions_{i}",
        )(x, cond)
      outputs.append(x)
    if self.resample is not None:
      up = self.resample == "up"
      name = f"{self.resample}samplers_0"
      x = Resample(self.features, up, c.downsample_padding, self.method, name=name)(x)
      outputs.append(x)
    return x, outputs


class UNet2DCondition(nn.Module):
  """The denoiser: (x_t, timesteps, cond) -> prediction of the schedule's prediction type.

  Attributes:
    config: architecture.
    dtype: dtype of the computation; parameters stay float32.
    conv_method: one of `ops.conv.METHODS`; None picks by backend.
    attention: exchangeable attention function for self-attention over long sequences
      (`ops.attention.LONG_SEQUENCE`).
    remat: whether to recompute each residual block and transformer in the backward pass.
    text_attention: the function for short sequences and the text; None for the plain product.
    fused: whether query, key and value of an attention are one product, or two for the text.
  """

  config: UNet2DConditionConfig
  dtype: Any = jnp.float32
  conv_method: str | None = None
  attention: AttentionFn = dot_product_attention
  remat: bool = False
  text_attention: AttentionFn | None = None
  fused: bool = True

  @nn.compact
  def __call__(
    self,
    x_t: jax.Array,
    timesteps: jax.Array,
    cond: jax.Array,
    *,
    added: tuple[jax.Array, jax.Array] | None = None,
    seeds: jax.Array | None = None,
  ) -> jax.Array:
    """Predicts the schedule's target (the noise, ...) from noised latents.

    Args:
      x_t: (B, h, w, in_channels), h and w multiples of 2 ** (levels - 1). Inpainting models take
        the noised latents, the mask (1 where to paint) and the masked picture's latents, in this
        order.
      timesteps: (B,) integers.
      cond: (B, L, cross_attention_dim), the text encoder's output.
      added: for XL, the pooled text (B, pooled_dim) and six sizes (B, 6) in pixels: original height
        and width, top and left of the crop, target height and width. None for other models.
      seeds: (B,) uint32, one per picture, which enable the config's dropout.

    Returns:
      (B, h, w, out_channels) float32.

    Raises:
      ValueError: this network does not support the sizes.
    """
    c = self.config
    _check(c, x_t, cond, added)
    temb = embedded_time(c, timesteps, self.dtype, method=self.conv_method, added=added)
    cond = cond.astype(self.dtype)

    def level(name, i, layers, kind, resample, x, skips):
      heads = c.heads[i] if "CrossAttn" in kind else None
      speed: dict[str, Any] = {
        "method": self.conv_method,
        "attention": self.attention,
        "remat": self.remat,
        "text_attention": self.text_attention,
        "fused": self.fused,
        "depth": c.depths[i],
      }
      options = (c.block_out_channels[i], layers, heads, resample, name == MIDDLE)
      return _Level(c, *options, **speed, name=name)(x, temb, cond, skips, seeds)

    return down_and_up(c, x_t.astype(self.dtype), level, "CrossAttn", method=self.conv_method)


def _check(c: UNet2DConditionConfig, x_t: jax.Array, cond: jax.Array, added: Any) -> None:
  factor = 2 ** (len(c.block_out_channels) - 1)
  if x_t.shape[-1] != c.in_channels or x_t.shape[1] % factor or x_t.shape[2] % factor:
    raise ValueError(
      f"x_t {x_t.shape}: wanted (B, h, w, {c.in_channels}) with h and w multiples of {factor}"
    )
  if cond.ndim != 3 or cond.shape[-1] != c.cross_attention_dim or len(cond) != len(x_t):
    raise ValueError(
      f"cond {cond.shape}: wanted ({len(x_t)}, length, {c.cross_attention_dim}), the output of the"
      " text encoder that belongs to this U-Net"
    )
  wanted = ((len(x_t), c.pooled_dim), (len(x_t), NUM_SIZES)) if c.pooled_dim else None
  given = None if added is None else tuple(part.shape for part in added)
  if given != wanted:
    raise ValueError(f"added {given}: this U-Net takes {wanted}, the pooled text and six sizes")
