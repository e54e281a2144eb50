"""CLIP's image tower (Radford et al., arXiv:2103.00020), a vision transformer in flax.linen.

The parameter tree uses the names of transformers' `CLIPVisionModel` as in the published files
(which spell `pre_layrnorm` like this), with `.N` written `_N`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from udp_jax.errors import ConfigError
from udp_jax.models.clip_text import ACTIVATIONS, Encoder
from udp_jax.models.transformer import LayerNorm

_normal = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
  """The fields of transformers' `CLIPVisionConfig` that our models use.

  The defaults are transformers' own: the image tower of CLIP ViT-B/32.
  """

  hidden_size: int = 768
  intermediate_size: int = 3072
  num_hidden_layers: int = 12
  num_attention_heads: int = 12
  image_size: int = 224
  patch_size: int = 32
  hidden_act: str = "quick_gelu"
  layer_norm_eps: float = 1e-5

  def __post_init__(self):
    if self.hidden_act not in ACTIVATIONS:
      raise ConfigError(
        f"CLIP vision config: hidden_act={self.hidden_act!r} is not supported, only"
        f" {' and '.join(ACTIVATIONS)}"
      )
    for whole, part in (
      ("hidden_size", "num_attention_heads"),
      ("image_size", "patch_size"),
    ):
      if not getattr(self, part) or getattr(self, whole) % getattr(self, part):
        raise ConfigError(
          f"CLIP vision config: {whole}={getattr(self, whole)} is not a multiple of"
          f" {part}={getattr(self, part)}"
        )

  @classmethod
  def from_dict(cls, config: Mapping[str, Any]) -> CLIPVisionConfig:
    """Reads the fields of a config.json. Raises ConfigError for unsupported settings."""
    fixed = {
      "model_type": ("clip_vision_model",),
      "num_channels": (3,),
      "attention_dropout": (0.0,),
      "dropout": (0.0,),
    }
    for name, allowed in fixed.items():
      if config.get(name, allowed[0]) not in allowed:
        raise ConfigError(f"CLIP vision config: {name}={config[name]!r} is not supported")
    known = {field.name for field in dataclasses.fields(cls)}
    return cls(**{k: v for k, v in config.items() if k in known})

  def to_dict(self) -> dict[str, Any]:
    """Returns the `vision_config` of transformers' config.json."""
    return dict(vars(self)) | {"model_type": "clip_vision_model", "num_channels": 3}


class _Positions(nn.Module):
  size: int
  features: int

  @nn.compact
  def __call__(self):
    return self.param("embedding", _normal, (self.size, self.features))


class _Patches(nn.Module):
  """A convolution without bias whose stride equals its size, as a product with every patch."""

  features: int
  size: int

  @nn.compact
  def __call__(self, images):
    b, h, w, c = images.shape
    kernel = self.param("kernel", _normal, (self.size, self.size, c, self.features))
    shape = (b, h // self.size, self.size, w // self.size, self.size, c)
    patches = images.reshape(shape).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(b, -1, self.size**2 * c) @ kernel.reshape(-1, self.features)


class _Embeddings(nn.Module):
  config: CLIPVisionConfig

  @nn.compact
  def __call__(self, images):
    c = self.config
    of_class = self.param("class_embedding", _normal, (c.hidden_size,))
    patches = _Patches(c.hidden_size, c.patch_size, name="patch_embedding")(images)
    first = jnp.broadcast_to(of_class, (len(images), 1, c.hidden_size))
    tokens = jnp.concatenate([first.astype(patches.dtype), patches], axis=1)
    return tokens + _Positions(tokens.shape[1], c.hidden_size, name="position_embedding")()


class _VisionTransformer(nn.Module):
  config: CLIPVisionConfig

  @nn.compact
  def __call__(self, images):
    c = self.config
    x = _Embeddings(c, name="embeddings")(images)
    x = LayerNorm(c.layer_norm_eps, name="pre_layrnorm")(x)
    x, _ = Encoder(c, causal=False, name="encoder")(x)
    return LayerNorm(c.layer_norm_eps, name="post_layernorm")(x[:, 0])


class CLIPVision(nn.Module):
  """Encodes normalised pictures into the state of the class token, before the projection."""

  config: CLIPVisionConfig

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Encodes pictures.

    Args:
      images: (B, image_size, image_size, 3), normalised with CLIP's mean and deviation.

    Returns:
      (B, hidden_size), after the final norm.

    Raises:
      ValueError: the pictures have another size.
    """
    side = self.config.image_size
    if images.shape[1:] != (side, side, 3):
      raise ValueError(f"this model takes pictures of {side}x{side}x3, not {images.shape[1:]}")
    return _VisionTransformer(self.config, name="vision_model")(images)
