"""The transformer inside Stable Diffusion's U-Net, under diffusers' parameter names.

Rombach et al. 2022, arXiv:2112.10752, appendix E.2.1: input projection, self-attention over the
positions, cross-attention to the text, gated feed-forward layer, output projection.
"""

from __future__ import annotations

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from udp_jax.models.layers import Conv, Dense, Norm, wide_products
from udp_jax.ops.attention import LONG_SEQUENCE, AttentionFn, dot_product_attention
from udp_jax.ops.linear import dense

# Not the U-Net's own epsilon: diffusers fixes PyTorch's default in `Transformer2DModel`.
_GROUP_NORM_EPSILON = 1e-6

_uniform = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


class LayerNorm(nn.Module):
  """Normalises the last axis (Ba et al., arXiv:1607.06450) with statistics in at least float32."""

  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Features (..., C) -> the same shape and dtype."""
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
    if self.is_initializing():  # See the comment in `layers`.
      return x
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # Two passes: E[x^2] - E[x]^2 loses all digits if the mean is much larger than the spread.
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(x.dtype)


class _Kernel(nn.Module):
  """The kernel of a dense layer without bias, whose product the caller fuses with others."""

  features: int

  @nn.compact
  def __call__(self, inputs: int) -> jax.Array:
    return self.param("kernel", _uniform, (inputs, self.features))


class Attention(nn.Module):
  """Attention of a sequence to itself or to the text (Vaswani et al., arXiv:1706.03762).

  `attention` is for long sequences to themselves, `text_attention` for others (None for the plain
  product), `fused` as in `layers.AttentionBlock`.
  """

  heads: int
  attention: AttentionFn = dot_product_attention
  wide: bool | None = None
  text_attention: AttentionFn | None = None
  fused: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, cond: jax.Array | None = None) -> jax.Array:
    """Features (B, N, C), attending to (B, L, D) or, if None, to themselves -> (B, N, C)."""
    b, length, c = x.shape
    inputs = {"to_q": c} | dict.fromkeys(("to_k", "to_v"), c if cond is None else cond.shape[-1])
    kernels = [_Kernel(c, name=name)(size).astype(x.dtype) for name, size in inputs.items()]
    if self.is_initializing():
      return Dense(c, wide=self.wide, name="to_out_0")(x)
    if not self.fused:
      sources = (x, *(x if cond is None else cond,) * 2)
      parts = [dense(source, kernel, wide=self.wide) for source, kernel in zip(sources, kernels)]
    elif cond is None:
      parts = jnp.split(dense(x, jnp.concatenate(kernels, -1), wide=self.wide), 3, axis=-1)
    else:
      both = dense(cond, jnp.concatenate(kernels[1:], -1), wide=self.wide)
      parts = [dense(x, kernels[0], wide=self.wide), *jnp.split(both, 2, axis=-1)]
    query, key, value = (part.reshape(b, -1, self.heads, c // self.heads) for part in parts)
    long = cond is None and length >= LONG_SEQUENCE
    short = self.text_attention or partial(dot_product_attention, wide=self.wide)
    out = (self.attention if long else short)(query, key, value)
    return Dense(c, wide=self.wide, name="to_out_0")(out.reshape(b, length, c))


class _GatedGelu(nn.Module):
  """GEGLU (Shazeer, arXiv:2002.05202) with exact GELU."""

  features: int
  wide: bool | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    hidden, gate = jnp.split(Dense(2 * self.features, wide=self.wide, name="proj")(x), 2, axis=-1)
    return hidden * gelu(gate)


def gelu(x: jax.Array) -> jax.Array:
  """GELU, x Phi(x) (Hendrycks and Gimpel, arXiv:1606.08415), computed with erf, not tanh."""
  return x * (0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5))))


class _FeedForward(nn.Module):
  """A gated layer of four times the width, then a projection back; diffusers' net_1 is dropout."""

  wide: bool | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    c = x.shape[-1]
    hidden = _GatedGelu(4 * c, self.wide, name="net_0")(x)
    return Dense(c, wide=self.wide, name="net_2")(hidden)


class BasicTransformerBlock(nn.Module):
  """Self-attention, cross-attention and feed-forward layer, each pre-normalised and residual."""

  heads: int
  attention: AttentionFn = dot_product_attention
  wide: bool | None = None
  text_attention: AttentionFn | None = None
  fused: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, cond: jax.Array) -> jax.Array:
    """Features (B, N, C) and text (B, L, D) -> (B, N, C)."""
    options = (self.heads, self.attention, self.wide, self.text_attention, self.fused)
    x = x + Attention(*options, name="attn1")(LayerNorm(name="norm1")(x))
    x = x + Attention(*options, name="attn2")(LayerNorm(name="norm2")(x), cond)
    return x + _FeedForward(self.wide, name="ff")(LayerNorm(name="norm3")(x))


class Transformer2D(nn.Module):
  """A transformer over the positions of a feature map, with a residual connection.

  It has `depth` blocks; `remat` recomputes each of them by itself in the backward pass.
  """

  heads: int
  num_groups: int
  linear_projection: bool = False
  attention: AttentionFn = dot_product_attention
  method: str | None = None
  text_attention: AttentionFn | None = None
  fused: bool = True
  depth: int = 1
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, cond: jax.Array) -> jax.Array:
    """Features (B, H, W, C) and text (B, L, D) -> (B, H, W, C)."""
    wide = wide_products(self.method)
    b, h, w, c = x.shape

    def project(features: jax.Array, name: str, zero: bool) -> jax.Array:
      # Both branches compute the same product; 1.x stores a convolution, 2.x a dense layer.
      if self.linear_projection:
        return Dense(c, zero, wide, name=name)(features)
      return Conv(c, 1, padding=0, zero=zero, method=self.method, name=name)(features)

    hidden = Norm(self.num_groups, _GROUP_NORM_EPSILON, "none", name="norm")(x)
    hidden = project(hidden, "proj_in", False).reshape(b, h * w, c)
    options = (self.heads, self.attention, wide, self.text_attention, self.fused)
    block = nn.remat(BasicTransformerBlock) if self.remat else BasicTransformerBlock
    for i in range(self.depth):
      hidden = block(*options, name=f"transformer_blocks_{i}")(hidden, cond)
    return x + project(hidden.reshape(b, h, w, c), "proj_out", True)
