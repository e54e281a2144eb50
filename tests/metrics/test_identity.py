"""Cosines of face embeddings; the network itself is tested in tests/models."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udp_jax.errors import ConfigError
from udp_jax.metrics.identity import IdentitySimilarity
from udp_jax.runtime import mesh


class MeanColour(NamedTuple):
  """In place of a face network: the direction of the mean colour away from grey."""

  params: jax.Array = jnp.ones(3)

  def apply(self, params, images):
    away = params * (images.mean((1, 2)) - 0.5)
    return away / jnp.linalg.norm(away, axis=-1, keepdims=True)


COLOURS = np.array([[1, 0, 0], [0, 1, 0], [-1, 0, 0], [1, 1, 0], [3, 0, 0]])


def flat(colours):
  return np.clip(np.asarray(colours) * 40 + 127.5, 0, 255).astype(np.uint8)[
    :, None, None
  ] + np.zeros((1, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def similarity():
  return IdentitySimilarity(MeanColour(), per_device_batch_size=2, mesh=mesh.make_mesh())


def test_each_with_its_own_reference(similarity):
  found = similarity.each(flat(COLOURS), flat(COLOURS[[0] * 5]))
  np.testing.assert_allclose(found, [1, 0, -1, 0.5**0.5, 1], atol=0.03)
  with pytest.raises(ConfigError, match="5 pictures have no 2 references"):
    similarity.each(flat(COLOURS), flat(COLOURS[:2]))


def test_to_the_mean_of_one_person(similarity):
  """Of unit vectors: a strong picture counts as much as a weak one."""
  found = similarity.to_person(flat(COLOURS), flat(COLOURS[[1, 4]]))
  half = 0.5**0.5
  np.testing.assert_allclose(found, [half, half, -half, 1, half], atol=0.03)
