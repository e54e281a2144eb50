"""CLIP's text encoder (Radford et al., arXiv:2103.00020) in flax.linen.

Stable Diffusion 1.x uses the encoder of CLIP ViT-L/14 (quick_gelu). Stable Diffusion 2.x uses that
of OpenCLIP ViT-H/14 (gelu) without its last layer: its config sets `num_hidden_layers: 23` of the
24 trained layers, so our last layer is the original's penultimate one, and the final layer norm
still follows. Stable Diffusion XL reads the penultimate layers of two encoders, CLIP ViT-L/14 and
OpenCLIP ViT-bigG/14, without that norm, and from the second one a projection of the prompt's end.

The parameter tree uses the names of transformers' `CLIPTextModel` as in the published files
(`text_model.encoder.layers.0...`), with `.N` written `_N`; `models.weights` converts both ways.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from udp_jax.errors import ConfigError
from udp_jax.models.layers import Dense, wide_products
from udp_jax.models.transformer import LayerNorm, gelu
from udp_jax.ops.attention import attention_logits
from udp_jax.ops.linear import dense

_normal = nn.initializers.normal(0.02)
# Configs from before transformers 4.31 say 2, but mean the token with the largest id.
_LEGACY_END = 2

ACTIVATIONS = {"quick_gelu": lambda x: x * nn.sigmoid(1.702 * x), "gelu": gelu}


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
  """The fields of transformers' `CLIPTextConfig` that our models use.

  The defaults are the text encoder of CLIP ViT-L/14, 123,060,480 parameters. `projection_dim` and
  the ids of special tokens are kept for saving; Stable Diffusion uses neither.
  """

  vocab_size: int = 49408
  hidden_size: int = 768
  intermediate_size: int = 3072
  num_hidden_layers: int = 12
  num_attention_heads: int = 12
  max_position_embeddings: int = 77
  hidden_act: str = "quick_gelu"
  layer_norm_eps: float = 1e-5
  projection_dim: int = 768
  bos_token_id: int | None = 49406
  eos_token_id: int | None = 49407
  pad_token_id: int | None = 1

  def __post_init__(self):
    if self.hidden_act not in ACTIVATIONS:
      raise ConfigError(
        f"CLIP text config: hidden_act={self.hidden_act!r} is not supported, only"
        f" {' and '.join(ACTIVATIONS)}"
      )
    if not self.num_attention_heads or self.hidden_size % self.num_attention_heads:
      raise ConfigError(
        f"hidden_size={self.hidden_size} does not divide into {self.num_attention_heads} heads"
      )

  @classmethod
  def from_dict(cls, config: Mapping[str, Any]) -> CLIPTextConfig:
    """Reads a transformers `config.json`. Raises ConfigError for unsupported settings."""
    fixed = {"model_type": ("clip_text_model",), "attention_dropout": (0.0,), "dropout": (0.0,)}
    for name, allowed in fixed.items():
      if config.get(name, allowed[0]) not in allowed:
        raise ConfigError(f"CLIP text config: {name}={config[name]!r} is not supported")
    known = {field.name for field in dataclasses.fields(cls)}
    # A missing field means transformers' default, where that differs from ours.
    theirs = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    theirs |= {"projection_dim": 512}
    return cls(**(theirs | {k: v for k, v in config.items() if k in known}))

  def to_dict(self) -> dict[str, Any]:
    """Returns the transformers `config.json` of this model."""
    kind = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
    return dict(vars(self)) | kind | {"attention_dropout": 0.0, "torch_dtype": "float32"}


class _Embeddings(nn.Module):
  config: CLIPTextConfig
  dtype: Any

  @nn.compact
  def __call__(self, token_ids, inputs_embeds):
    c = self.config
    tokens = _Embedding(c.vocab_size, c.hidden_size, name="token_embedding")()
    positions = _Embedding(c.max_position_embeddings, c.hidden_size, name="position_embedding")()
    if inputs_embeds is None:
      # An id outside the table gives NaNs rather than another word's embedding.
      inputs_embeds = jnp.take(tokens, token_ids, axis=0, mode="fill", fill_value=jnp.nan)
    return (inputs_embeds + positions[: inputs_embeds.shape[1]]).astype(self.dtype)


class _Embedding(nn.Module):
  size: int
  features: int

  @nn.compact
  def __call__(self):
    if self.has_variable("params", "embedding"):  # Learned tokens lengthen the table.
      return self.get_variable("params", "embedding")
    return self.param("embedding", _normal, (self.size, self.features))


class _SelfAttention(nn.Module):
  """Self-attention over all tokens, or over a token and those before it if `causal`.

  Padding is not masked.
  """

  heads: int
  wide: bool | None
  causal: bool

  @nn.compact
  def __call__(self, x):
    b, length, c = x.shape
    shape = (b, length, self.heads, c // self.heads)
    query, key, value = (
      Dense(c, wide=self.wide, name=f"{name}_proj")(x).reshape(shape) for name in "qkv"
    )
    if self.is_initializing():  # See the comment in `layers`.
      return Dense(c, wide=self.wide, name="out_proj")(x)
    logits = attention_logits(query * shape[-1] ** -0.5, key)
    if self.causal:
      logits = jnp.where(jnp.tri(length, dtype=bool), logits, -jnp.inf)
    weights = jax.nn.softmax(logits).astype(x.dtype)
    out = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(b, length, c)
    return Dense(c, wide=self.wide, name="out_proj")(out)


class _MLP(nn.Module):
  features: int
  activation: str
  wide: bool | None

  @nn.compact
  def __call__(self, x):
    hidden = ACTIVATIONS[self.activation](Dense(self.features, wide=self.wide, name="fc1")(x))
    return Dense(x.shape[-1], wide=self.wide, name="fc2")(hidden)


class _Layer(nn.Module):
  config: Any
  wide: bool | None
  causal: bool

  @nn.compact
  def __call__(self, x):
    c = self.config
    normed = LayerNorm(c.layer_norm_eps, name="layer_norm1")(x)
    attention = _SelfAttention(c.num_attention_heads, self.wide, self.causal, name="self_attn")
    x = x + attention(normed)
    normed = LayerNorm(c.layer_norm_eps, name="layer_norm2")(x)
    return x + _MLP(c.intermediate_size, c.hidden_act, self.wide, name="mlp")(normed)


class Encoder(nn.Module):
  """The layers shared by CLIP's text and image towers; `config` belongs to either tower."""

  config: Any
  wide: bool | None = None
  remat: bool = False
  causal: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Hidden states (B, L, hidden_size) -> the last layer's output and its input, before the norm.

    Both have the shape of the hidden states.
    """
    layer, before = nn.remat(_Layer) if self.remat else _Layer, x
    for i in range(self.config.num_hidden_layers):
      before = x
      x = layer(self.config, self.wide, self.causal, name=f"layers_{i}")(x)
    return x, before


class _TextTransformer(nn.Module):
  config: CLIPTextConfig
  dtype: Any
  wide: bool | None
  remat: bool

  @nn.compact
  def __call__(self, token_ids, inputs_embeds):
    x = _Embeddings(self.config, self.dtype, name="embeddings")(token_ids, inputs_embeds)
    x, penultimate = Encoder(self.config, self.wide, self.remat, name="encoder")(x)
    return LayerNorm(self.config.layer_norm_eps, name="final_layer_norm")(x), penultimate


class CLIPText(nn.Module):
  """Encodes token ids into the hidden states that Stable Diffusion's U-Net attends to.

  Attributes:
    config: architecture.
    dtype: dtype of the computation; parameters stay float32.
    conv_method: the networks' convolution method; "xla" keeps matrix products narrow.
    remat: whether to recompute each layer in the backward pass.
    penultimate: whether to return the input of the last layer, not normalised, as the first
      encoder of Stable Diffusion XL does.
  """

  config: CLIPTextConfig
  dtype: Any = jnp.float32
  conv_method: str | None = None
  remat: bool = False
  penultimate: bool = False

  @nn.compact
  def __call__(
    self, token_ids: jax.Array | None, *, inputs_embeds: jax.Array | None = None
  ) -> jax.Array:
    """Encodes prompts.

    Args:
      token_ids: (B, L) integers below vocab_size, including start, end and padding tokens; L is at
        most max_position_embeddings (77). None if embeddings are given.
      inputs_embeds: (B, L, hidden_size), used in place of token embeddings, e.g. for textual
        inversion; positions are added here.

    Returns:
      (B, L, hidden_size) float32, after the final layer norm unless `penultimate`.

    Raises:
      ValueError: neither or both inputs are given, or there are more tokens than positions.
    """
    given = token_ids if inputs_embeds is None else inputs_embeds
    if given is None or (token_ids is not None and inputs_embeds is not None):
      raise ValueError("give either token_ids or inputs_embeds")
    if given.shape[1] > self.config.max_position_embeddings:
      raise ValueError(
        f"{given.shape[1]} tokens, but this model has {self.config.max_position_embeddings}"
        " positions"
      )
    wide = wide_products(self.conv_method)
    model = _TextTransformer(self.config, self.dtype, wide, self.remat, name="text_model")
    return model(token_ids, inputs_embeds)[self.penultimate].astype(jnp.float32)


class CLIPTextProjected(nn.Module):
  """The second encoder of Stable Diffusion XL: transformers' `CLIPTextModelWithProjection`.

  Its attributes are those of `CLIPText`.
  """

  config: CLIPTextConfig
  dtype: Any = jnp.float32
  conv_method: str | None = None
  remat: bool = False

  @nn.compact
  def __call__(self, token_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Encodes prompts.

    Args:
      token_ids: (B, L) integers below vocab_size, including start, end and padding tokens.

    Returns:
      The input of the last layer (B, L, hidden_size), not normalised, and the normalised, projected
      output at the prompt's end (B, projection_dim), both float32.
    """
    c, wide = self.config, wide_products(self.conv_method)
    model = _TextTransformer(c, self.dtype, wide, self.remat, name="text_model")
    last, penultimate = model(token_ids, None)
    at_end = jnp.take_along_axis(last, end_of_prompt(c, token_ids)[:, None, None], axis=1)[:, 0]
    kernel = _Projection(c.projection_dim, name="text_projection")(c.hidden_size)
    pooled = dense(at_end, kernel.astype(at_end.dtype), wide=wide)
    return penultimate.astype(jnp.float32), pooled.astype(jnp.float32)


def end_of_prompt(config: CLIPTextConfig, token_ids: jax.Array) -> jax.Array:
  """Returns the place (B,) of the first end token in token ids (B, L), as transformers finds it."""
  end = config.eos_token_id
  return jnp.argmax(token_ids if end in (None, _LEGACY_END) else token_ids == end, axis=1)


class _Projection(nn.Module):
  features: int

  @nn.compact
  def __call__(self, inputs: int) -> jax.Array:
    return self.param("kernel", _normal, (inputs, self.features))
