"""Superpixels against scikit-image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import color, data, segmentation, transform

from udp_jax.ops import superpixels


@pytest.fixture(scope="module")
def photograph():
  picture = transform.resize(data.astronaut(), (64, 64), anti_aliasing=True)
  return np.asarray(picture, np.float32)


def test_lab_is_scikit_images(photograph):
  found = superpixels.to_lab(jnp.asarray(photograph))
  np.testing.assert_allclose(found, color.rgb2lab(photograph), atol=2e-2)


def test_grid():
  assert superpixels.grid(64, 64, 16) == (4, 4) and superpixels.grid(64, 64, 1) == (1, 1)
  assert superpixels.grid(16, 64, 4) == (1, 4) and superpixels.grid(2, 2, 100) == (2, 2)
  for count in range(1, 40):
    rows, columns = superpixels.grid(48, 64, count)
    assert 0.6 * count <= rows * columns <= count


def agreement(first, second):
  """Rand index: the share of pairs of pixels on which two segmentations agree."""
  table = np.zeros((first.max() + 1, second.max() + 1))
  np.add.at(table, (first.ravel(), second.ravel()), 1)
  pairs = lambda counts: (counts * (counts - 1) / 2).sum()
  both, one, other = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
  return 1 + (2 * both - one - other) / pairs(np.array([first.size]))


def test_superpixels_are_nearly_those_of_scikit_image(photograph):
  """The same objective in another local minimum: regions agree more than with an even grid."""
  found = np.asarray(superpixels.superpixels(jnp.asarray(photograph)[None], 16))[0]
  theirs = segmentation.slic(
    photograph, 16, compactness=10, sigma=0, start_label=0, enforce_connectivity=False
  )
  even = (np.arange(64)[:, None] // 16) * 4 + np.arange(64)[None] // 16
  assert found.max() + 1 <= 16 and len(np.unique(found)) > 10
  assert agreement(found, theirs) > 0.92 > 0.91 > agreement(even, theirs)

  def spread(labels):
    """Variance of colour within regions, which superpixels make small."""
    lab = color.rgb2lab(photograph)
    return sum(
      np.square(lab[labels == n] - lab[labels == n].mean(0)).sum() for n in np.unique(labels)
    )

  assert spread(found) < 1.3 * spread(theirs) and spread(found) < 0.2 * spread(even)


def test_each_picture_by_itself(photograph):
  pictures = jnp.stack([jnp.asarray(photograph), jnp.asarray(photograph[::-1])])
  make = jax.jit(lambda x: superpixels.superpixels(x, 6))
  np.testing.assert_array_equal(make(pictures)[::-1], make(pictures[::-1]))
  assert make(pictures).dtype == jnp.int32
  with pytest.raises(ValueError, match="count must be at least 1, got 0"):
    superpixels.superpixels(pictures, 0)


def test_compactness_makes_a_grid_of_it(photograph):
  found = np.asarray(superpixels.superpixels(jnp.asarray(photograph)[None], 16, compactness=1e4))[0]
  even = (np.arange(64)[:, None] // 16) * 4 + np.arange(64)[None] // 16
  assert agreement(found, even) > 0.97
