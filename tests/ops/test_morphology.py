"""Depths against SciPy's distance transform; regions that shrink."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from udp_jax.ops import morphology
from udp_jax.ops.keys import example_keys

KEYS = example_keys(jax.random.key(0), 0, np.arange(40))


def blobs(height=21, width=17):
  """Regions with holes, several parts, and borders that cut them."""
  noise = np.random.default_rng(0).normal(size=(6, height, width))
  smooth = ndimage.gaussian_filter(noise, (0, 2, 2))
  return np.concatenate([smooth > 0, np.ones((1, height, width)), np.zeros((1, height, width))]) > 0


def test_depth_is_scipys_distance():
  found = jax.jit(morphology.depth)(blobs())
  for one, inside in zip(np.asarray(found), blobs()):
    padded = np.pad(inside, 1)
    np.testing.assert_allclose(one, ndimage.distance_transform_edt(padded)[1:-1, 1:-1], rtol=1e-6)


def discs(radius=12, count=len(KEYS)):
  y, x = np.mgrid[:32, :32]
  disc = (y - 15) ** 2 + (x - 16) ** 2 <= radius**2
  return np.repeat(disc[None], count, axis=0)


def shrink(strength=1.1, smoothness=0.1, inside=None):
  inside = discs() if inside is None else inside
  function = jax.jit(
    lambda keys: morphology.shrunk(keys, inside, strength=strength, smoothness=smoothness)
  )
  return np.asarray(function(KEYS[: len(inside)]))


def test_regions_lie_within_the_given_one_and_none_disappears():
  found = shrink()
  assert not (found & ~discs()).any() and found.any((1, 2)).all()
  # Few of the depths are below one pixel, which changes nothing.
  assert len(np.unique(found, axis=0)) > 0.75 * len(KEYS)
  left = found.sum((1, 2)) / discs().sum((1, 2))
  assert 0.5 < left.mean() < 0.9 and left.std() > 0.1
  assert shrink(strength=30.0).any((1, 2)).all()
  assert not shrink(inside=np.zeros((3, 8, 8))).any()


def test_strength_nothing_changes_nothing():
  np.testing.assert_array_equal(shrink(strength=0.0), discs())
  assert shrink(strength=0.3).sum() > shrink(strength=1.1).sum()


def test_a_smoother_contour_is_shorter_for_its_area():
  def roughness(smoothness):
    found = shrink(smoothness=smoothness).astype(int)
    edges = np.abs(np.diff(found, axis=1)).sum() + np.abs(np.diff(found, axis=2)).sum()
    return edges / np.sqrt(found.sum((1, 2))).sum()

  assert roughness(0.02) > 1.2 * roughness(0.5)


def test_a_draw_is_the_pictures_own():
  found, keys = shrink(), KEYS[::-1]
  inside = jnp.asarray(discs())
  again = jax.jit(lambda k: morphology.shrunk(k, inside, strength=1.1, smoothness=0.1))(keys)
  assert (np.asarray(again)[::-1] == found).mean() > 0.999
