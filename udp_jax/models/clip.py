"""CLIP (Radford et al., arXiv:2103.00020): embeds pictures and texts as unit vectors of one space.

It reads both towers and their projections from a local folder in transformers' `CLIPModel` layout:
config.json, model.safetensors (or shards), and the tokenizer's files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from udp_jax.errors import BadDataError, MissingDataError
from udp_jax.models import places, weights
from udp_jax.models.clip_text import CLIPText, CLIPTextConfig, end_of_prompt
from udp_jax.models.clip_vision import CLIPVision, CLIPVisionConfig
from udp_jax.models.tokenizer import Tokenizer, load_tokenizer
from udp_jax.ops.image import resize
from udp_jax.runtime import files

# Mean and standard deviation of CLIP's training pictures, in [0, 1].
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
_HOW_TO_GET = (
  "On a machine with network access run `hf download openai/clip-vit-base-patch32 --local-dir"
  " FOLDER` and give the path of that folder"
)


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
  """The architecture of both towers; `projection_dim` is the size of the embeddings."""

  text: CLIPTextConfig
  vision: CLIPVisionConfig
  projection_dim: int = 512

  @classmethod
  def from_dict(cls, config: Mapping[str, Any]) -> CLIPConfig:
    """Reads a transformers `config.json`.

    Raises:
      ConfigError: the config uses a part that this library does not have.
      BadDataError: the config describes another kind of model.
    """
    if config.get("model_type", "clip") != "clip":
      raise BadDataError(f"config.json describes a {config['model_type']!r}, not a clip")
    # Files of early versions hold each config twice; the second one applies.
    fields = {
      name: (config.get(f"{name}_config") or {}) | (config.get(f"{name}_config_dict") or {})
      for name in ("text", "vision")
    }
    return cls(
      CLIPTextConfig.from_dict(fields["text"]),
      CLIPVisionConfig.from_dict(fields["vision"]),
      config.get("projection_dim", 512),
    )

  def to_dict(self) -> dict[str, Any]:
    """Returns the transformers `config.json` of this model."""
    return {
      "architectures": ["CLIPModel"],
      "model_type": "clip",
      "projection_dim": self.projection_dim,
      "text_config": self.text.to_dict(),
      "vision_config": self.vision.to_dict(),
    }


class CLIP(NamedTuple):
  """A loaded CLIP model.

  Attributes:
    params: parameters of both towers, under transformers' names.
    embed_images: (params, images (B, H, W, 3) in [0, 1]) -> unit vectors (B, projection_dim);
      resizes and crops by itself; differentiable.
    embed_token_ids: (params, token ids (B, L)) -> unit vectors (B, projection_dim).
    tokenizer: prompts -> token ids.
    dim: projection_dim.
    revision: name and hash of the weights, for the record.
  """

  params: Any
  embed_images: Callable[[Any, jax.Array], jax.Array]
  embed_token_ids: Callable[[Any, jax.Array], jax.Array]
  tokenizer: Tokenizer
  dim: int
  revision: str

  def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
    """Embeds N texts as float32 unit vectors (N, projection_dim)."""
    with jax.default_matmul_precision("highest"):
      return np.asarray(jax.jit(self.embed_token_ids)(self.params, self.tokenizer(list(texts))))


def load(folder: str | os.PathLike[str]) -> CLIP:
  """Reads a CLIP folder, without network access or pickles.

  Args:
    folder: a folder written by transformers' `CLIPModel` and `CLIPProcessor`. The image processor
      always uses the published models' settings.

  Raises:
    MissingDataError: the folder or one of its files does not exist; the message says how to get it.
    BadDataError: a file is damaged, the model is of another kind, or tensors do not fit.
    ConfigError: this library does not have the architecture.
  """
  folder = places.find_folder(folder, "a CLIP model")
  if not (folder / "config.json").is_file():
    raise MissingDataError(f"no CLIP model in {folder}: config.json is missing. {_HOW_TO_GET}")
  raw, tensors = weights.load_pretrained(folder)
  try:
    config = CLIPConfig.from_dict(raw)
  except TypeError as error:  # For example, a list in place of a number.
    raise BadDataError(f"{folder / 'config.json'}: {error}") from error
  params = weights.from_torch_names(tensors, shapes(config), origin=str(folder), put=jax.device_put)
  model = functions(config)
  return CLIP(
    params,
    *model,
    tokenizer=load_tokenizer(folder),
    dim=config.projection_dim,
    revision=f"{folder.name} sha256:{_digest(tensors)}",
  )


def functions(config: CLIPConfig) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
  """Returns `CLIP.embed_images` and `CLIP.embed_token_ids` of an architecture."""
  vision, text = CLIPVision(config.vision), CLIPText(config.text)

  def embed_images(params: Any, images: jax.Array) -> jax.Array:
    pixels = (cropped(images, config.vision.image_size) - _MEAN) / _DEVIATION
    pooled: Any = vision.apply({"params": {"vision_model": params["vision_model"]}}, pixels)
    return _unit(pooled @ params["visual_projection"]["kernel"])

  def embed_token_ids(params: Any, token_ids: jax.Array) -> jax.Array:
    states: Any = text.apply({"params": {"text_model": params["text_model"]}}, token_ids)
    end = end_of_prompt(config.text, token_ids)
    pooled = jnp.take_along_axis(states, end[:, None, None], axis=1)
    return _unit(pooled[:, 0] @ params["text_projection"]["kernel"])

  return embed_images, embed_token_ids


def cropped(images: jax.Array, size: int) -> jax.Array:
  """Resizes and crops pictures (B, H, W, 3) in [0, 1] for CLIP: (B, size, size, 3).

  A bicubic filter resizes the shorter side to `size`, then the centre is cut out. The published
  processor does this on 8-bit pictures; this function does not round to 8 bits.
  """
  height, width = images.shape[1:3]
  short = min(height, width)
  target = (size * height // short, size * width // short)
  images = jnp.clip(resize(images, target, method="cubic"), 0.0, 1.0)
  top, left = (target[0] - size) // 2, (target[1] - size) // 2
  return images[:, top : top + size, left : left + size]


def shapes(config: CLIPConfig) -> Any:
  """Returns the shapes and dtypes of the parameters."""

  def init(key: jax.Array) -> Any:
    side = config.vision.image_size
    vision = CLIPVision(config.vision).init(key, jnp.zeros((1, side, side, 3)))["params"]
    text = CLIPText(config.text).init(key, jnp.zeros((1, 1), jnp.int32))["params"]
    return {
      **vision,
      **text,
      "visual_projection": {
        "kernel": jnp.zeros((config.vision.hidden_size, config.projection_dim))
      },
      "text_projection": {"kernel": jnp.zeros((config.text.hidden_size, config.projection_dim))},
      "logit_scale": jnp.zeros(()),
    }

  return jax.eval_shape(init, jax.random.key(0))


def save(folder: str | os.PathLike[str], config: CLIPConfig, params: Any, tokenizer: Tokenizer):
  """Writes a folder that `load` and transformers' `CLIPModel.from_pretrained` open.

  Raises:
    OutputError: the folder cannot be written.
  """
  weights.save_pretrained(folder, config.to_dict(), params, class_name="CLIPModel")
  with files.output_errors(Path(folder)):
    tokenizer.save(folder)


def _unit(vectors: jax.Array) -> jax.Array:
  return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
  """Returns the SHA-256 of all tensors, independent of the number of files."""
  digest = hashlib.sha256()
  for name in sorted(tensors):
    digest.update(name.encode() + np.ascontiguousarray(tensors[name]).tobytes())
  return digest.hexdigest()
