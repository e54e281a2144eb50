"""CLIP scores of pictures: zero-shot classification, similarity to a text or to a picture.

They need CLIP's weights (`models.clip.load`). IMPRESS and Glaze report the first one: the share of
pictures whose own style is among the `top` candidates (Shan et al. 2023, arXiv:2302.04222, section
6.1: genres, top 3). Without the weights, `metrics.style` measures style under a name of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from udp_jax.errors import ConfigError
from udp_jax.metrics.batches import over_pictures
from udp_jax.models.clip import CLIP
from udp_jax.ops.image import to_float


class CLIPScores:
  """Scores pictures with CLIP; the network is compiled once per picture size."""

  def __init__(self, clip: CLIP, *, per_device_batch_size: int, mesh: Mesh):
    """Prepares the compiled functions; the first call compiles them.

    Args:
      clip: the model, from `models.clip.load`.
      per_device_batch_size: pictures per device at a time; affects only speed.
      mesh: devices to run on.
    """
    self._clip, self._size, self._mesh = clip, per_device_batch_size, mesh

    @jax.jit
    def embed(params: Any, images: jax.Array) -> jax.Array:
      # A metric must not depend on how a device rounds products.
      with jax.default_matmul_precision("highest"):
        return clip.embed_images(params, to_float(images))

    self._embed = partial(embed, clip.params)

  def vectors(self, images: np.ndarray) -> np.ndarray:
    """Embeds uint8 images (N, H, W, 3) as unit vectors (N, D)."""
    return over_pictures(
      self._embed, images, per_device_batch_size=self._size, mesh=self._mesh
    ).astype(np.float64)

  def score(self, images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """CLIP score (N,) of uint8 images with one text each: 100 max(cos, 0).

    This is the score of Hessel et al. 2021 (arXiv:2104.08718) with factor 100 in place of 2.5, the
    convention for generated pictures.

    Raises:
      ConfigError: the numbers of texts and pictures differ.
    """
    if len(texts) != len(images):
      raise ConfigError(f"{len(images)} pictures cannot be scored by {len(texts)} texts")
    different, place = np.unique(np.asarray(texts, object).astype(str), return_inverse=True)
    vectors = self._clip.embed_texts(different.tolist()).astype(np.float64)[place.reshape(-1)]
    return 100.0 * np.maximum(np.sum(self.vectors(images) * vectors, axis=1), 0.0)

  def likeness(self, images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Cosine similarity (N,) of uint8 images with one reference picture (N, H, W, 3) each."""
    return np.sum(self.vectors(images) * self.vectors(reference), axis=1)

  def hits(
    self, images: np.ndarray, labels: np.ndarray, texts: Sequence[str], *, top: int = 1
  ) -> np.ndarray:
    """Returns 1 for pictures whose own class is among the `top` by cosine, else 0; (N,).

    Args:
      images: uint8 (N, H, W, 3).
      labels: (N,), indices of the pictures' classes in `texts`.
      texts: one text per class, such as "a painting by Claude Monet", and per other candidate.
      top: number of best classes that count as a hit; 1 is plain accuracy, IMPRESS uses 3 of 39.

    Raises:
      ConfigError: there are fewer than two texts, or `top` is so large that every picture hits.
    """
    if not 1 <= top < len(texts):
      raise ConfigError(f"the best {top} of {len(texts)} classes tells nothing")
    cosines = self.vectors(images) @ self._clip.embed_texts(texts).astype(np.float64).T
    own = np.take_along_axis(cosines, np.asarray(labels)[:, None], axis=1)
    return (np.sum(cosines > own, axis=1) < top).astype(np.float64)
