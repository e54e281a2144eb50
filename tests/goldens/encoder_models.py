"""Small CLIP and face models for comparisons: configs, weights and inputs, from NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from sd_models import TEXTS, draw, tensors

CLIP = {
  "projection_dim": 6,
  "text_config": TEXTS["quick_gelu"],
  "vision_config": {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 16,
    "patch_size": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-3,
  },
}
# As OpenAI's own files: the end is the token with the largest id.
CLIP_LEGACY = CLIP | {"text_config": TEXTS["quick_gelu"] | {"eos_token_id": 2}}

# Blocks and widths of the four stages; pictures of 32x32, a last map of 2x2.
FACE_BLOCKS, FACE_WIDTHS, FACE_SIZE, FACE_DIM = (2, 1, 1, 2), (4, 6, 6, 8), 32, 5


def clip_inputs(fields: Mapping) -> tuple[np.ndarray, np.ndarray]:
  """Pictures (3, H, W, 3) in [0, 1], and token ids (2, L) that end at different places."""
  side = fields["vision_config"]["image_size"]
  images = 0.5 + 0.5 * np.tanh(draw("images", 3, side, side, 3))
  ids = np.random.RandomState(1).randint(
    3, 48, (2, fields["text_config"]["max_position_embeddings"])
  )
  ids[:, 0] = 48
  ids[0, 5:], ids[1, 9:] = 49, 49
  return images, ids


def face_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  """Weights under insightface's names; variances are positive, scales around 1."""
  made = tensors(shapes)
  for name, value in made.items():
    if name.endswith("running_var"):
      made[name] = np.exp(value)
    elif value.ndim == 1 and name.endswith("weight") and "prelu" not in name:
      made[name] = 1 + value
  return made


def face_inputs() -> np.ndarray:
  """Pictures (3, H, W, 3) in [-1, 1]."""
  return np.tanh(draw("faces", 3, FACE_SIZE, FACE_SIZE, 3))
