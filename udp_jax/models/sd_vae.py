"""The autoencoder of latent diffusion (Rombach et al. 2022, arXiv:2112.10752) in flax.linen.

The parameter tree uses the names of diffusers' `AutoencoderKL` with `.N` written `_N`, so that
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
from udp_jax.models.layers import AttentionBlock, Conv, Norm, Resample, ResnetBlock
from udp_jax.ops.attention import AttentionFn, dot_product_attention

_EPSILON = 1e-6  # For all group norms in this model; diffusers has no field for it.
_DOWN, _UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


@dataclasses.dataclass(frozen=True)
class AutoencoderKLConfig:
  """The fields of diffusers' `AutoencoderKL` config that our models use.

  The defaults are the autoencoder of Stable Diffusion 1.x, 83.7 M parameters. `scaling_factor`
  scales latents to unit variance for the U-Net; `encode` and `decode` do not apply it.
  `force_upcast` tells diffusers that float16 is not precise enough for this autoencoder.
  """

  in_channels: int = 3
  out_channels: int = 3
  block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
  layers_per_block: int = 2
  latent_channels: int = 4
  norm_num_groups: int = 32
  sample_size: int = 512
  scaling_factor: float = 0.18215
  force_upcast: bool = True
  use_quant_conv: bool = True
  use_post_quant_conv: bool = True
  mid_block_add_attention: bool = True

  def __post_init__(self):
    if not self.block_out_channels:
      raise ConfigError("AutoencoderKL config: block_out_channels is empty")
    for channels in self.block_out_channels:
      if not self.norm_num_groups or channels % self.norm_num_groups:
        raise ConfigError(f"{channels} channels do not divide into {self.norm_num_groups} groups")
    if self.sample_size % self.downscale:
      raise ConfigError(
        f"AutoencoderKL config: sample_size {self.sample_size} is not a multiple of "
        f"{self.downscale}, the factor between pictures and latents"
      )
    if not self.scaling_factor > 0:
      raise ConfigError(f"AutoencoderKL config: scaling_factor {self.scaling_factor} is not > 0")

  @property
  def downscale(self) -> int:
    """Number of pixels per latent, along each axis."""
    return 2 ** (len(self.block_out_channels) - 1)

  @classmethod
  def from_dict(cls, config: Mapping[str, Any]) -> AutoencoderKLConfig:
    """Reads a diffusers `config.json`. Raises ConfigError for unsupported settings."""
    fixed = {
      "act_fn": ("silu", "swish"),
      "shift_factor": (None, 0, 0.0),
      "latents_mean": (None,),
      "latents_std": (None,),
    }
    for name, allowed in fixed.items():
      if config.get(name, allowed[0]) not in allowed:
        raise ConfigError(f"AutoencoderKL config: {name}={config[name]!r} is not supported")
    # A missing field means diffusers' default, where that differs from ours.
    theirs: dict[str, Any] = {"block_out_channels": (64,), "layers_per_block": 1, "sample_size": 32}
    known = {field.name for field in dataclasses.fields(cls)}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in known}
    values = theirs | {k: v for k, v in values.items() if v is not None}
    levels = len(values["block_out_channels"])
    for name, kind in (("down_block_types", _DOWN), ("up_block_types", _UP)):
      if list(config.get(name, [kind])) != [kind] * levels:
        raise ConfigError(
          f"AutoencoderKL config: {name}={config.get(name, [kind])!r} is not supported; "
          f"expected {levels} times {kind!r}"
        )
    return cls(**values)

  def to_dict(self) -> dict[str, Any]:
    """Returns the diffusers `config.json` of this model, without `_class_name`."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
    levels = len(self.block_out_channels)
    types = {"down_block_types": [_DOWN] * levels, "up_block_types": [_UP] * levels}
    return values | types | {"act_fn": "silu"}


class _Part(nn.Module):
  """Attributes shared by encoder and decoder, as in `AutoencoderKL`."""

  config: AutoencoderKLConfig
  dtype: Any
  method: str | None
  attention: AttentionFn
  remat: bool
  fused: bool


class _Level(_Part):
  """Residual blocks, optional attention after the first one, and a change of resolution."""

  features: int = 0
  layers: int = 0
  resample: str | None = None
  attend: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    groups = self.config.norm_num_groups
    resnet = nn.remat(ResnetBlock) if self.remat else ResnetBlock
    for i in range(self.layers):
      x = resnet(self.features, groups, _EPSILON, method=self.method, name=f"resnets_{i}")(x)
      if self.attend and i == 0:
        options: dict[str, Any] = {"attention": self.attention, "method": self.method}
        options["fused"] = self.fused
        x = AttentionBlock(groups, _EPSILON, **options, name="attentions_0")(x)
    if self.resample:
      up = self.resample == "up"
      name = f"{self.resample}samplers_0"
      x = Resample(self.features, up, method=self.method, name=name)(x)
    return x

  @classmethod
  def of(cls, part: _Part, name: str, features: int, layers: int, **options: Any) -> _Level:
    """Makes a level with the attributes of the part that contains it."""
    shared = (part.config, part.dtype, part.method, part.attention, part.remat, part.fused)
    return cls(*shared, features=features, layers=layers, **options, name=name)


class Encoder(_Part):
  """Pictures (B, H, W, 3) -> moments (B, H / downscale, W / downscale, 2 * latent_channels)."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Expects pictures in [-1, 1]; computes in `dtype`."""
    c = self.config
    channels, last = c.block_out_channels, len(c.block_out_channels) - 1
    x = Conv(channels[0], method=self.method, name="conv_in")(x.astype(self.dtype))
    for i, features in enumerate(channels):
      resample = "down" if i < last else None
      name = f"down_blocks_{i}"
      x = _Level.of(self, name, features, c.layers_per_block, resample=resample)(x)
    x = _Level.of(self, "mid_block", channels[-1], 2, attend=c.mid_block_add_attention)(x)
    x = Norm(c.norm_num_groups, _EPSILON, name="conv_norm_out")(x)
    return Conv(2 * c.latent_channels, method=self.method, name="conv_out")(x)


class Decoder(_Part):
  """Latents (B, h, w, latent_channels) -> pictures (B, h * downscale, w * downscale, 3)."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Computes in `dtype`; the output has range [-1, 1] but is not clipped."""
    c = self.config
    channels, last = c.block_out_channels[::-1], len(c.block_out_channels) - 1
    x = Conv(channels[0], method=self.method, name="conv_in")(x.astype(self.dtype))
    x = _Level.of(self, "mid_block", channels[0], 2, attend=c.mid_block_add_attention)(x)
    for i, features in enumerate(channels):
      resample = "up" if i < last else None
      x = _Level.of(self, f"up_blocks_{i}", features, c.layers_per_block + 1, resample=resample)(x)
    x = Norm(c.norm_num_groups, _EPSILON, name="conv_norm_out")(x)
    return Conv(c.out_channels, method=self.method, name="conv_out")(x)


class AutoencoderKL(nn.Module):
  """The autoencoder, for pictures in [-1, 1] and latents without the scaling factor.

  Attributes:
    config: architecture.
    dtype: dtype of the computation; parameters stay float32.
    conv_method: one of `ops.conv.METHODS`; None picks by backend.
    attention: exchangeable attention function.
    remat: whether to recompute each residual block in the backward pass.
    fused: whether query, key and value of the attention are one product.
  """

  config: AutoencoderKLConfig
  dtype: Any = jnp.float32
  conv_method: str | None = None
  attention: AttentionFn = dot_product_attention
  remat: bool = False
  fused: bool = True

  def setup(self) -> None:
    """Names the parts as diffusers does."""
    c = self.config
    options = (c, self.dtype, self.conv_method, self.attention, self.remat, self.fused)
    self.encoder = Encoder(*options)
    self.decoder = Decoder(*options)
    if c.use_quant_conv:
      self.quant_conv = Conv(2 * c.latent_channels, 1, padding=0, method=self.conv_method)
    if c.use_post_quant_conv:
      self.post_quant_conv = Conv(c.latent_channels, 1, padding=0, method=self.conv_method)

  def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the moments of q(latents | images).

    Args:
      images: (B, H, W, in_channels) in [-1, 1]; H and W multiples of `config.downscale`.

    Returns:
      (mean, logvar), each (B, H / downscale, W / downscale, latent_channels) float32; logvar is
      clipped to [-30, 20], as in diffusers.

    Raises:
      ConfigError: the pictures have another number of channels or an indivisible size.
    """
    c = self.config
    _, height, width, channels = images.shape
    if channels != c.in_channels or height % c.downscale or width % c.downscale:
      raise ConfigError(
        f"pictures of {height}x{width}x{channels} do not fit this autoencoder: it takes "
        f"{c.in_channels} channels and sides that are multiples of {c.downscale}"
      )
    moments = self.encoder(images)
    if c.use_quant_conv:
      moments = self.quant_conv(moments)
    mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(logvar, -30.0, 20.0)

  def decode(self, latents: jax.Array) -> jax.Array:
    """Decodes unscaled latents (B, h, w, latent_channels) to float32 (B, H, W, 3) pictures.

    Raises:
      ConfigError: the latents have another number of channels.
    """
    c = self.config
    if latents.shape[-1] != c.latent_channels:
      raise ConfigError(
        f"latents of {latents.shape[-1]} channels do not fit this autoencoder: it takes "
        f"{c.latent_channels}"
      )
    latents = latents.astype(self.dtype)
    if c.use_post_quant_conv:
      latents = self.post_quant_conv(latents)
    return self.decoder(latents).astype(jnp.float32)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Reconstructs pictures in [-1, 1] from the mean of their latents."""
    return self.decode(self.encode(images)[0])
