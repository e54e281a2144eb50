"""Layers shared by the diffusion networks, under diffusers' parameter names.

Convolution, normalisation and attention come from `udp_jax.ops`, whose gradients stay fast inside
a scan.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from udp_jax.ops.attention import AttentionFn, dot_product_attention
from udp_jax.ops.conv import conv2d, hold, upsampled_conv2d
from udp_jax.ops.dropout import dropout
from udp_jax.ops.linear import add_bias, dense
from udp_jax.ops.norm import group_norm


def timestep_embedding(
  timesteps: jax.Array, dim: int, *, flip_sin_to_cos: bool = False, freq_shift: int = 1
) -> jax.Array:
  """Embeds timesteps (B,) as sinusoids (B, dim), sines first unless flipped."""
  half = dim // 2
  numbers = jnp.arange(half).astype(jnp.float32)
  frequencies = jnp.exp(-jnp.log(10000.0) * numbers / (half - freq_shift))
  angles = timesteps.astype(jnp.float32)[:, None] * frequencies[None]
  parts = [jnp.sin(angles), jnp.cos(angles)]
  embedding = jnp.concatenate(parts[::-1] if flip_sin_to_cos else parts, axis=1)
  return jnp.pad(embedding, ((0, 0), (0, dim - 2 * half)))


_uniform = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


def wide_products(method: str | None) -> bool | None:
  """Returns `wide` of `ops.linear.dense` for networks of this convolution method; None if None.

  The method is known for the machine that runs the program, which may not be the one that compiles.
  """
  return None if method is None else method != "xla"


# Parameters do not depend on feature values: during initialisation (which also finds the shapes for
# a folder), the layers below return zeros of the right shape, which halves the time.


class Conv(nn.Module):
  """`ops.conv.conv2d` as a layer with parameters."""

  features: int
  size: int = 3
  stride: int = 1
  padding: int | tuple[tuple[int, int], tuple[int, int]] = 1
  zero: bool = False
  doubled: bool = False
  method: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Features (B, H, W, C) -> (B, H', W', features); `doubled` first repeats every pixel."""
    init = nn.initializers.zeros if self.zero else _uniform
    kernel = self.param("kernel", init, (self.size, self.size, x.shape[-1], self.features))
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    if self.is_initializing():
      return self._zeros(x)
    kernel, bias = kernel.astype(x.dtype), bias.astype(x.dtype)
    options: dict[str, Any] = {"stride": self.stride, "padding": self.padding}
    held: Any = self.get_variable("prepared", "filters")
    if self.is_mutable_collection("prepared"):
      factor = 2 if self.doubled else 1
      shape = (x.shape[0], factor * x.shape[1], factor * x.shape[2], x.shape[3])
      made = hold(kernel, shape, method=self.method, **options)
      if made is not None:
        self.put_variable("prepared", "filters", made)
    if self.doubled:
      return upsampled_conv2d(x, kernel, bias, method=self.method, held=held)
    return conv2d(x, kernel, bias, method=self.method, held=held, **options)

  def _zeros(self, x: jax.Array) -> jax.Array:
    """Returns zeros with the shape and dtype of the layer's output."""
    b, h, w, _ = x.shape
    if self.doubled:
      return jnp.zeros((b, 2 * h, 2 * w, self.features), x.dtype)
    pads = ((self.padding,) * 2,) * 2 if isinstance(self.padding, int) else self.padding
    h, w = ((n + sum(pad) - self.size) // self.stride + 1 for n, pad in zip((h, w), pads))
    return jnp.zeros((b, h, w, self.features), x.dtype)


class _DenseParams(nn.Module):
  """Parameters of a dense layer whose product the caller fuses with others."""

  features: int

  @nn.compact
  def __call__(self, inputs: int) -> tuple[jax.Array, jax.Array]:
    kernel = self.param("kernel", _uniform, (inputs, self.features))
    return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


class Dense(nn.Module):
  """`ops.linear.dense` as a layer with parameters."""

  features: int
  zero: bool = False
  wide: bool | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Features (..., K) -> (..., features)."""
    init = nn.initializers.zeros if self.zero else _uniform
    kernel = self.param("kernel", init, (x.shape[-1], self.features))
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    if self.is_initializing():
      return jnp.zeros((*x.shape[:-1], self.features), x.dtype)
    return dense(x, kernel.astype(x.dtype), bias.astype(x.dtype), wide=self.wide)


class Norm(nn.Module):
  """`ops.norm.group_norm` as a layer with parameters."""

  num_groups: int
  epsilon: float
  activation: str = "silu"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Features (B, H, W, C) -> the same shape."""
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
    if self.is_initializing():
      return x
    options: dict[str, Any] = {"num_groups": self.num_groups, "epsilon": self.epsilon}
    return group_norm(x, scale, bias, activation=self.activation, **options)


def halved(x: jax.Array) -> jax.Array:
  """Means of 2x2 positions: (B, H, W, C) -> (B, H / 2, W / 2, C)."""
  b, h, w, c = x.shape
  return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def doubled(x: jax.Array) -> jax.Array:
  """Every position four times: (B, H, W, C) -> (B, 2 H, 2 W, C)."""
  return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class ResnetBlock(nn.Module):
  """Norm, SiLU, conv, + time (if given), norm, SiLU, dropout, conv, + shortcut.

  With `scale_shift`, time scales and shifts the second norm instead (Dhariwal & Nichol 2021,
  arXiv:2105.05233, section 3.1). With `resample` "up" or "down", both branches double or halve the
  map, without parameters of their own.
  """

  features: int
  num_groups: int
  epsilon: float
  dropout: float = 0.0
  method: str | None = None
  scale_shift: bool = False
  resample: str | None = None

  @nn.compact
  def __call__(
    self, x: jax.Array, temb: jax.Array | None = None, seeds: jax.Array | None = None
  ) -> jax.Array:
    """Features (B, H, W, C) and the activated time embedding (B, D) -> (B, H, W, features)."""
    up = self.resample == "up"
    h = Norm(self.num_groups, self.epsilon, name="norm1")(x)
    if self.resample == "down":
      h = halved(h)
    h = Conv(self.features, doubled=up, method=self.method, name="conv1")(h)
    if temb is not None:
      width = 2 * self.features if self.scale_shift else self.features
      project = Dense(width, wide=wide_products(self.method), name="time_emb_proj")
      time = project(temb)[:, None, None]
      h = h if self.scale_shift else add_bias(h, time)
    if temb is not None and self.scale_shift:
      scale, shift = jnp.split(time, 2, axis=-1)
      h = Norm(self.num_groups, self.epsilon, "none", name="norm2")(h)
      h = nn.silu(h * (1.0 + scale) + shift)
    else:
      h = Norm(self.num_groups, self.epsilon, name="norm2")(h)
    if seeds is not None and self.dropout:
      # Each block draws its own masks.
      seeds = seeds ^ jnp.uint32(zlib.crc32("/".join(self.path).encode()))
      h = dropout(seeds, h, self.dropout)
    h = Conv(self.features, zero=True, method=self.method, name="conv2")(h)
    if self.resample:
      x = doubled(x) if up else halved(x)
    if x.shape[-1] != self.features:
      x = Conv(self.features, 1, padding=0, method=self.method, name="conv_shortcut")(x)
    return x + h


class AttentionBlock(nn.Module):
  """Self-attention over the positions of a feature map, with a residual connection.

  `fused` computes query, key and value as one product. Kernels that take them as arrays of their
  own, such as cuDNN's, would have to copy the three slices, and so do TPUs.
  """

  num_groups: int
  epsilon: float
  head_dim: int | None = None
  attention: AttentionFn = dot_product_attention
  method: str | None = None
  fused: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Features (B, H, W, C) -> the same shape."""
    wide = wide_products(self.method)
    b, h, w, c = x.shape
    heads = 1 if self.head_dim is None else c // self.head_dim
    normed = Norm(self.num_groups, self.epsilon, "none", name="group_norm")(x)
    parts = [_DenseParams(c, name=name)(c) for name in ("to_q", "to_k", "to_v")]
    if self.is_initializing():
      return Dense(c, zero=True, wide=wide, name="to_out_0")(normed)
    # Products keep the map's axes: flattened ones make TPUs copy it into another layout.
    if self.fused:
      kernel, bias = (jnp.concatenate(part, -1).astype(x.dtype) for part in zip(*parts))
      query, key, value = jnp.split(dense(normed, kernel, bias, wide=wide), 3, axis=-1)
    else:
      query, key, value = (
        dense(normed, kernel.astype(x.dtype), bias.astype(x.dtype), wide=wide)
        for kernel, bias in parts
      )
    split = (b, h * w, heads, c // heads)
    out = self.attention(query.reshape(split), key.reshape(split), value.reshape(split))
    return x + Dense(c, zero=True, wide=wide, name="to_out_0")(out.reshape(x.shape))


class Resample(nn.Module):
  """Halves a map by a strided convolution, or doubles it by repetition and convolution."""

  features: int
  up: bool
  padding: int = 0
  method: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Features (B, H, W, C) -> half or twice the resolution."""
    if self.up:
      return Conv(self.features, doubled=True, method=self.method, name="conv")(x)
    # With padding 0, diffusers pads asymmetrically.
    pad = ((0, 1), (0, 1)) if self.padding == 0 else self.padding
    return Conv(self.features, stride=2, padding=pad, method=self.method, name="conv")(x)


class TimeEmbedding(nn.Module):
  """Two dense layers with a SiLU between them."""

  features: int
  dtype: Any
  wide: bool | None = None

  @nn.compact
  def __call__(self, temb: jax.Array) -> jax.Array:
    """Sinusoids (B, C) -> the embedding (B, features), not yet activated."""
    temb = Dense(self.features, wide=self.wide, name="linear_1")(temb.astype(self.dtype))
    return Dense(self.features, wide=self.wide, name="linear_2")(nn.silu(temb))


def embedded_time(
  config: Any,
  timesteps: jax.Array,
  dtype: Any,
  *,
  method: str | None,
  added: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
  """Embeds timesteps as a submodule of the calling U-Net.

  Args:
    config: the U-Net's fields.
    timesteps: (B,) integers.
    dtype: dtype of the computation.
    method: the U-Net's convolution method; None picks products by backend.
    added: for Stable Diffusion XL (Podell et al., arXiv:2307.01952, section 2.2), the pooled text
      (B, P) and sizes (B, 6), which are embedded like timesteps.

  Returns:
    (B, D), activated.
  """
  width = config.block_out_channels[0]
  temb = timestep_embedding(
    timesteps, width, flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift
  )
  embed = TimeEmbedding(4 * width, dtype, wide_products(method), name="time_embedding")
  temb = embed(temb.astype(dtype))
  if added is not None:
    pooled, sizes = added
    numbers = timestep_embedding(
      sizes.reshape(-1),
      config.addition_time_embed_dim,
      flip_sin_to_cos=config.flip_sin_to_cos,
      freq_shift=config.freq_shift,
    )
    both = jnp.concatenate([pooled, numbers.reshape(len(sizes), -1)], axis=-1)
    embed = TimeEmbedding(4 * width, dtype, wide_products(method), name="add_embedding")
    temb = temb + embed(both.astype(dtype))
  # Every residual block would otherwise apply it first.
  return nn.silu(temb)


MIDDLE = "mid_block"


def down_and_up(
  config: Any,
  x: jax.Array,
  level: Callable[..., tuple[jax.Array, list[jax.Array]]],
  middle: str,
  *,
  method: str | None,
) -> jax.Array:
  """Runs a U-Net: down its levels, through the middle, and up again with the skip features.

  Args:
    config: the U-Net's fields.
    x: (B, H, W, C) in the dtype of the computation.
    level: (name, number of the level, layers, kind, "up", "down" or None, x, skips) ->
      (x, outputs); skips are None on the way down, whose outputs become skips on the way up.
    middle: kind of the middle block, which is named `MIDDLE`.
    method: convolution method, one of `ops.conv`'s; None picks by backend.

  Returns:
    (B, H, W, config.out_channels) float32.
  """
  c = config
  x = Conv(c.block_out_channels[0], method=method, name="conv_in")(x)
  skips = [x]
  last = len(c.block_out_channels) - 1
  for i, kind in enumerate(c.down_block_types):
    resample = "down" if i < last else None
    x, outputs = level(f"down_blocks_{i}", i, c.layers_per_block, kind, resample, x, None)
    skips += outputs
  x, _ = level(MIDDLE, last, 2, middle, None, x, None)
  layers = c.layers_per_block + 1
  for i, kind in enumerate(c.up_block_types):
    taken, skips = skips[-layers:], skips[:-layers]
    resample = "up" if i < last else None
    x, _ = level(f"up_blocks_{i}", last - i, layers, kind, resample, x, taken)
  x = Norm(c.norm_num_groups, c.norm_eps, name="conv_norm_out")(x)
  x = Conv(c.out_channels, zero=True, method=method, name="conv_out")(x)
  return x.astype(jnp.float32)
