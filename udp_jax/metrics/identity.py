"""Whether pictures show the same person: cosines of face embeddings.

Anti-DreamBooth's identity score (Le et al. 2023, arXiv:2303.15433, section 5.1: ISM) is the cosine
of a sample's ArcFace embedding with the mean of the clean pictures'. Theirs detects and aligns
faces first, and leaves pictures without one out; see `models.face_embedding` for what ours sees.
Only with a face model's weights; nothing stands in for it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from udp_jax.errors import ConfigError
from udp_jax.metrics.batches import over_pictures
from udp_jax.models.face_embedding import FaceEmbedding
from udp_jax.ops.image import to_float


class IdentitySimilarity:
  """Cosines of face embeddings, in [-1, 1]; compiled once for a size of pictures."""

  def __init__(self, face: FaceEmbedding, *, per_device_batch_size: int, mesh: Mesh):
    """Compiles nothing yet.

    Args:
      face: of `models.face_embedding.load`.
      per_device_batch_size: pictures that a device works on at a time; changes speed only.
      mesh: devices.
    """
    self._size, self._mesh = per_device_batch_size, mesh

    @jax.jit
    def embed(params: Any, images: jax.Array) -> jax.Array:
      # A metric must not depend on how a device rounds products.
      with jax.default_matmul_precision("highest"):
        return face.apply(params, to_float(images))

    self._embed = partial(embed, face.params)

  def vectors(self, images: np.ndarray) -> np.ndarray:
    """Unit vectors (N, D) of uint8 images (N, H, W, 3)."""
    return over_pictures(
      self._embed, images, per_device_batch_size=self._size, mesh=self._mesh
    ).astype(np.float64)

  def each(self, images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Cosine (N,) of uint8 images with reference pictures of the same people, one each.

    Raises:
      ConfigError: another number of reference pictures.
    """
    if len(images) != len(reference):
      raise ConfigError(f"{len(images)} pictures have no {len(reference)} references, one each")
    return np.sum(self.vectors(images) * self.vectors(reference), axis=1)

  def to_person(self, images: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """Cosine (N,) of uint8 images with the mean vector of one person's pictures (M, H, W, 3)."""
    mean = self.vectors(pictures).mean(axis=0)
    return self.vectors(images) @ (mean / np.linalg.norm(mean))
