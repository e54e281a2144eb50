"""Measures whether pictures show the same person, by cosines of face embeddings.

Anti-DreamBooth's identity score (Le et al. 2023, arXiv:2303.15433, section 5.1: ISM) is the cosine
between a sample's ArcFace embedding and the mean embedding of the clean pictures. The original
first detects and aligns faces and leaves out pictures without one; `models.face_embedding` says
what ours does. The score needs a face model's weights and has no substitute without them.
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
  """Cosines of face embeddings, in [-1, 1]; the network is compiled once per picture size."""

  def __init__(self, face: FaceEmbedding, *, per_device_batch_size: int, mesh: Mesh):
    """Prepares the compiled functions; the first call compiles them.

    Args:
      face: the network, from `models.face_embedding.load`.
      per_device_batch_size: pictures per device at a time; affects only speed.
      mesh: devices to run on.
    """
    self._size, self._mesh = per_device_batch_size, mesh

    @jax.jit
    def embed(params: Any, images: jax.Array) -> jax.Array:
      # A metric must not depend on how a device rounds products.
      with jax.default_matmul_precision("highest"):
        return face.apply(params, to_float(images))

    self._embed = partial(embed, face.params)

  def vectors(self, images: np.ndarray) -> np.ndarray:
    """Embeds uint8 images (N, H, W, 3) as unit vectors (N, D)."""
    return over_pictures(
      self._embed, images, per_device_batch_size=self._size, mesh=self._mesh
    ).astype(np.float64)

  def each(self, images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Cosine (N,) of uint8 images with one reference picture of the same person each.

    Raises:
      ConfigError: the numbers of images and reference pictures differ.
    """
    if len(images) != len(reference):
      raise ConfigError(f"{len(images)} pictures have no {len(reference)} references, one each")
    return np.sum(self.vectors(images) * self.vectors(reference), axis=1)

  def to_person(self, images: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """Cosine (N,) of uint8 images with the mean embedding of a person's pictures (M, H, W, 3)."""
    mean = self.vectors(pictures).mean(axis=0)
    return self.vectors(images) @ (mean / np.linalg.norm(mean))
