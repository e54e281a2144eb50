"""The U-Net of Ho et al. 2020 (DDPM, arXiv:2006.11239, appendix B) in flax.linen.

The parameter tree uses the names of diffusers' `UNet2DModel` with `.N` written `_N`, so that
`models.weights` converts both ways by rule. Convolution, normalisation and attention come from
`udp_jax.ops`, whose gradients stay fast inside a scan.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from udp_jax.errors import ConfigError
from udp_jax.ops.attention import AttentionFn, dot_product_attention
from udp_jax.ops.conv import conv2d, hold, upsampled_conv2d
from udp_jax.ops.dropout import dropout
from udp_jax.ops.linear import dense
from udp_jax.ops.norm import group_norm

_DOWN = ("DownBlock2D", "AttnDownBlock2D")
_UP = ("UpBlock2D", "AttnUpBlock2D")


@dataclasses.dataclass(frozen=True)
class UNet2DConfig:
  """The fields of diffusers' `UNet2DModel` config that this class of models uses.

  The defaults are the CIFAR-10 model of Ho et al. (`google/ddpm-cifar10-32`), 35.7 M parameters.
  `attention_head_dim=None` means one head. `dropout` acts while training only.
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

  def __post_init__(self):
    levels = len(self.block_out_channels)
    if levels != len(self.down_block_types) or levels != len(self.up_block_types):
      raise ConfigError("block_out_channels, down_block_types and up_block_types differ in length")
    for kind in (*self.down_block_types, *self.up_block_types):
      if kind not in _DOWN + _UP:
        raise ConfigError(f"unknown U-Net block {kind!r}; known: {', '.join(_DOWN + _UP)}")
    for channels in self.block_out_channels:
      if channels % self.norm_num_groups:
        raise ConfigError(f"{channels} channels do not divide into {self.norm_num_groups} groups")

  @classmethod
  def from_dict(cls, config: Mapping[str, Any]) -> UNet2DConfig:
    """Reads a diffusers `config.json`. Raises ConfigError for what this class cannot do."""
    fixed = {
      "act_fn": ("silu", "swish"),
      "center_input_sample": (False,),
      "time_embedding_type": ("positional",),
      "class_embed_type": (None,),
      "num_class_embeds": (None,),
      "mid_block_scale_factor": (1, 1.0),
      "resnet_time_scale_shift": ("default",),
      "downsample_type": ("conv",),
      "upsample_type": ("conv",),
      "attn_norm_num_groups": (None,),
    }
    for name, allowed in fixed.items():
      if config.get(name, allowed[0]) not in allowed:
        raise ConfigError(f"UNet2DModel config: {name}={config[name]!r} is not supported")
    known = {field.name for field in dataclasses.fields(cls)}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in known}
    # A config that leaves a field out means diffusers' own default, where it differs from ours.
    theirs: dict[str, Any] = {"attention_head_dim": 8, "norm_eps": 1e-5, "downsample_padding": 1}
    theirs |= {"flip_sin_to_cos": True, "freq_shift": 0}
    return cls(**(theirs | values))

  def to_dict(self) -> dict[str, Any]:
    """The diffusers `config.json` of this model, without its `_class_name`."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
    return values | {"act_fn": "silu", "time_embedding_type": "positional"}


def timestep_embedding(
  timesteps: jax.Array, dim: int, *, flip_sin_to_cos: bool = False, freq_shift: int = 1
) -> jax.Array:
  """Sinusoidal embedding of timesteps (B,) -> (B, dim), sine first unless flipped."""
  half = dim // 2
  frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half) / (half - freq_shift))
  angles = timesteps.astype(jnp.float32)[:, None] * frequencies
  parts = [jnp.sin(angles), jnp.cos(angles)]
  embedding = jnp.concatenate(parts[::-1] if flip_sin_to_cos else parts, axis=1)
  return jnp.pad(embedding, ((0, 0), (0, dim - 2 * half)))


_uniform = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


class Conv(nn.Module):
  """`ops.conv.conv2d` with parameters."""

  features: int
  size: int = 3
  stride: int = 1
  padding: int | tuple[tuple[int, int], tuple[int, int]] = 1
  zero: bool = False
  doubled: bool = False
  method: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Features (B, H, W, C) -> (B, H', W', features); `doubled` repeats every pixel first."""
    init = nn.initializers.zeros if self.zero else _uniform
    kernel = self.param("kernel", init, (self.size, self.size, x.shape[-1], self.features))
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    kernel, bias = kernel.astype(x.dtype), bias.astype(x.dtype)
    options: dict[str, Any] = {"stride": self.stride, "padding": self.padding}
    held: Any = self.get_variable("prepared", "filters")
    if self.is_mutable_collection("prepared") and not self.is_initializing():
      factor = 2 if self.doubled else 1
      shape = (x.shape[0], factor * x.shape[1], factor * x.shape[2], x.shape[3])
      made = hold(kernel, shape, method=self.method, **options)
      if made is not None:
        self.put_variable("prepared", "filters", made)
    if self.doubled:
      return upsampled_conv2d(x, kernel, bias, method=self.method, held=held)
    return conv2d(x, kernel, bias, method=self.method, held=held, **options)


class _DenseParams(nn.Module):
  """Parameters of a dense layer, for products that are fused by the caller."""

  features: int

  @nn.compact
  def __call__(self, inputs: int) -> tuple[jax.Array, jax.Array]:
    kernel = self.param("kernel", _uniform, (inputs, self.features))
    return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


class Dense(nn.Module):
  """`ops.linear.dense` with parameters."""

  features: int
  zero: bool = False
  wide: bool | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Features (..., K) -> (..., features)."""
    init = nn.initializers.zeros if self.zero else _uniform
    kernel = self.param("kernel", init, (x.shape[-1], self.features))
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    return dense(x, kernel.astype(x.dtype), bias.astype(x.dtype), wide=self.wide)


class Norm(nn.Module):
  """`ops.norm.group_norm` with parameters."""

  num_groups: int
  epsilon: float
  activation: str = "silu"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Features (B, H, W, C) -> the same shape."""
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
    options: dict[str, Any] = {"num_groups": self.num_groups, "epsilon": self.epsilon}
    return group_norm(x, scale, bias, activation=self.activation, **options)


class ResnetBlock(nn.Module):
  """Norm, SiLU, conv, + time, norm, SiLU, dropout, conv, + shortcut."""

  config: UNet2DConfig
  features: int
  method: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, temb: jax.Array, seeds: jax.Array | None) -> jax.Array:
    """Features (B, H, W, C) and the activated time embedding (B, D) -> (B, H, W, features)."""
    c = self.config
    h = Norm(c.norm_num_groups, c.norm_eps, name="norm1")(x)
    h = Conv(self.features, method=self.method, name="conv1")(h)
    shift = Dense(self.features, name="time_emb_proj")(temb)
    h = Norm(c.norm_num_groups, c.norm_eps, name="norm2")(h + shift[:, None, None])
    if seeds is not None and c.dropout:
      # Each block draws masks of its own.
      h = dropout(seeds ^ jnp.uint32(zlib.crc32("/".join(self.path).encode())), h, c.dropout)
    h = Conv(self.features, zero=True, method=self.method, name="conv2")(h)
    if x.shape[-1] != self.features:
      x = Conv(self.features, 1, padding=0, method=self.method, name="conv_shortcut")(x)
    return x + h


class AttentionBlock(nn.Module):
  """Self-attention over the positions of a feature map, with a residual connection."""

  config: UNet2DConfig
  attention: AttentionFn = dot_product_attention
  method: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Features (B, H, W, C) -> the same shape."""
    wide = None if self.method is None else self.method != "xla"
    b, h, w, c = x.shape
    heads = 1 if self.config.attention_head_dim is None else c // self.config.attention_head_dim
    normed = Norm(self.config.norm_num_groups, self.config.norm_eps, "none", name="group_norm")(x)
    normed = normed.reshape(b, h * w, c)
    parts = [_DenseParams(c, name=name)(c) for name in ("to_q", "to_k", "to_v")]
    kernel, bias = (jnp.concatenate(part, -1).astype(x.dtype) for part in zip(*parts))
    query, key, value = jnp.split(dense(normed, kernel, bias, wide=wide), 3, axis=-1)
    split = (b, h * w, heads, c // heads)
    out = self.attention(query.reshape(split), key.reshape(split), value.reshape(split))
    out = Dense(c, zero=True, wide=wide, name="to_out_0")(out.reshape(b, h * w, c))
    return x + out.reshape(x.shape)


class Resample(nn.Module):
  """Halves a map by a strided convolution, or doubles it by repetition and a convolution."""

  features: int
  up: bool
  padding: int = 0
  method: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Features (B, H, W, C) -> half or twice the resolution."""
    if self.up:
      return Conv(self.features, doubled=True, method=self.method, name="conv")(x)
    # diffusers pads asymmetrically when it is told not to pad.
    pad = ((0, 1), (0, 1)) if self.padding == 0 else self.padding
    return Conv(self.features, stride=2, padding=pad, method=self.method, name="conv")(x)


class Block(nn.Module):
  """One level of the U-Net (or its middle): resnets, attention, and a change of resolution."""

  config: UNet2DConfig
  features: int
  layers: int
  attention: AttentionFn | None = None
  resample: str | None = None
  method: str | None = None
  remat: bool = False

  @nn.compact
  def __call__(self, x, temb, skips, seeds):
    """Takes a list of skips to consume (up), None to produce them (down); returns (x, outputs)."""
    resnet = nn.remat(ResnetBlock) if self.remat else ResnetBlock
    outputs = []
    middle = self.resample is None and skips == ()
    for i in range(self.layers):
      if skips:
        x = jnp.concatenate([x, skips[-1 - i]], axis=-1)
      x = resnet(self.config, self.features, self.method, name=f"resnets_{i}")(x, temb, seeds)
      if self.attention is not None and not (middle and i == self.layers - 1):
        x = AttentionBlock(self.config, self.attention, self.method, name=f"attentions_{i}")(x)
      outputs.append(x)
    if self.resample:
      options = (self.resample == "up", self.config.downsample_padding, self.method)
      x = Resample(self.features, *options, name=f"{self.resample}samplers_0")(x)
      outputs.append(x)
    return x, outputs


class UNet2D(nn.Module):
  """epsilon_theta(x_t, t): (B, H, W, C) and (B,) -> (B, H, W, C).

  Attributes:
    config: architecture.
    dtype: of the computation; parameters stay float32.
    conv_method: see `ops.conv`; None picks by backend.
    attention: exchangeable attention function.
    remat: recompute each residual block in the backward pass.
  """

  config: UNet2DConfig
  dtype: Any = jnp.float32
  conv_method: str | None = None
  attention: AttentionFn = dot_product_attention
  remat: bool = False

  @nn.compact
  def __call__(
    self, x_t: jax.Array, timesteps: jax.Array, *, seeds: jax.Array | None = None
  ) -> jax.Array:
    """Predicts the noise (or what the schedule says) in x_t; `seeds` (B,) uint32: with dropout."""
    c, dtype = self.config, self.dtype
    channels = c.block_out_channels
    temb = timestep_embedding(
      timesteps, channels[0], flip_sin_to_cos=c.flip_sin_to_cos, freq_shift=c.freq_shift
    )
    temb = TimeEmbedding(4 * channels[0], dtype, name="time_embedding")(temb.astype(dtype))

    def block(name, features, layers, kind, resample):
      attention = self.attention if "Attn" in kind else None
      options = (attention, resample, self.conv_method, self.remat)
      return Block(c, features, layers, *options, name=name)

    x = Conv(channels[0], method=self.conv_method, name="conv_in")(x_t.astype(dtype))
    skips = [x]
    last = len(channels) - 1
    for i, kind in enumerate(c.down_block_types):
      resample = "down" if i < last else None
      level = block(f"down_blocks_{i}", channels[i], c.layers_per_block, kind, resample)
      x, outputs = level(x, temb, None, seeds)
      skips += outputs
    kind = "Attn" if c.add_attention else ""
    x, _ = block("mid_block", channels[-1], 2, kind, None)(x, temb, (), seeds)
    for i, kind in enumerate(c.up_block_types):
      layers = c.layers_per_block + 1
      taken, skips = skips[-layers:], skips[:-layers]
      resample = "up" if i < last else None
      x, _ = block(f"up_blocks_{i}", channels[last - i], layers, kind, resample)(
        x, temb, taken, seeds
      )
    x = Norm(c.norm_num_groups, c.norm_eps, name="conv_norm_out")(x)
    x = Conv(c.out_channels, zero=True, method=self.conv_method, name="conv_out")(x)
    return x.astype(jnp.float32)


class TimeEmbedding(nn.Module):
  """Two dense layers; every residual block applies SiLU to the result first, so it is done here."""

  features: int
  dtype: Any

  @nn.compact
  def __call__(self, temb: jax.Array) -> jax.Array:
    """Sinusoids (B, C) -> the activated embedding (B, features)."""
    temb = Dense(self.features, name="linear_1")(temb.astype(self.dtype))
    return nn.silu(Dense(self.features, name="linear_2")(nn.silu(temb)))
