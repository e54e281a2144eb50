"""CLIP's view of pictures; the network itself is tested in tests/models."""

from __future__ import annotations

import numpy as np
import pytest

from udp_jax.errors import ConfigError
from udp_jax.metrics.clip_score import CLIPScores
from udp_jax.runtime import mesh

TEXTS = ["a painting by monet", "a photo of a cat", "the sea", "a dog"]


@pytest.fixture(scope="module")
def scores(tiny_clip):
  return CLIPScores(tiny_clip, per_device_batch_size=4, mesh=mesh.make_mesh())


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(3).integers(0, 256, (6, 16, 16, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def cosines(tiny_clip, scores, images):
  return scores.vectors(images) @ tiny_clip.embed_texts(TEXTS).T


def test_score_is_of_each_pictures_own_text(scores, images, cosines):
  own = [0, 1, 2, 3, 1, 0]
  found = scores.score(images, [TEXTS[n] for n in own])
  expected = 100 * np.maximum(cosines[np.arange(6), own], 0)
  np.testing.assert_allclose(found, expected, atol=1e-4)
  assert np.ptp(cosines) > 0.01
  with pytest.raises(ConfigError, match="6 pictures cannot be scored by 4 texts"):
    scores.score(images, TEXTS)


def test_zero_shot_classes(scores, images, cosines):
  best = cosines.argmax(1)
  np.testing.assert_array_equal(scores.hits(images, best, TEXTS), 1)
  np.testing.assert_array_equal(scores.hits(images, cosines.argmin(1), TEXTS, top=3), 0)
  third = np.argsort(-cosines, axis=1)[:, 2]
  np.testing.assert_array_equal(scores.hits(images, third, TEXTS, top=2), 0)
  np.testing.assert_array_equal(scores.hits(images, third, TEXTS, top=3), 1)
  for top in (0, 4):
    with pytest.raises(ConfigError, match="tells nothing"):
      scores.hits(images, best, TEXTS, top=top)


def test_likeness_of_pictures(scores, images):
  np.testing.assert_allclose(scores.likeness(images, images), 1, atol=1e-6)
  other = scores.likeness(images, images[::-1].copy())
  assert other.max() < 1 - 1e-4
  np.testing.assert_allclose(other, other[::-1], atol=1e-6)
