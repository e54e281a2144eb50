"""Noise of another method's values, in random order."""

from __future__ import annotations

import numpy as np
import pytest

from tests.protections.controls import RADIUS_255, delta_of, with_reference
from udp_jax.data import batches


def test_matched_noise_keeps_the_values_of_each_picture(grey, gaussian_model):
  data = with_reference(grey)
  delta = batches.unbatch(delta_of("matched_noise", gaussian_model, data), 10)
  theirs = (grey[1].astype(np.float32) - grey[0]) / 255
  flat = [np.sort(a.reshape(10, -1), axis=1) for a in (delta, theirs)]
  np.testing.assert_allclose(*flat, atol=1e-6)
  # Its structure is gone: stripes correlate with themselves in full.
  for ours, reference in zip(delta[1:9], theirs[1:9], strict=True):
    assert abs(np.corrcoef(ours.ravel(), reference.ravel())[0, 1]) < 0.4
  # Every picture has an order of its own.
  assert np.any(delta[1] / 1 != delta[2] / 2)


def test_matched_noise_does_not_depend_on_the_batch(grey, gaussian_model):
  deltas = [
    batches.unbatch(delta_of("matched_noise", gaussian_model, with_reference(grey, size)), 10)
    for size in (4, 10)
  ]
  np.testing.assert_array_equal(*deltas)


def _extreme(seed: int, **more: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Clean levels, many of them 0 and 255, what the reference adds, and what the control adds."""
  generator = np.random.default_rng(seed)
  clean = np.clip(generator.normal(128, 140, (6, 16, 16, 3)), 0, 255).astype(np.uint8)
  wanted = clean.astype(int) + generator.integers(-RADIUS_255, RADIUS_255 + 1, clean.shape)
  largest = more.get("limit", np.full((6, 1, 1, 1), 255)).astype(int)
  theirs = np.clip(np.clip(wanted, clean - largest, clean + largest), 0, 255)
  theirs = np.where(more.get("mask", np.ones((6, 1, 1, 1))) > 0, theirs, clean).astype(np.uint8)
  data = batches.make_batches(clean, 3, reference=theirs, **more)
  return (
    clean,
    theirs.astype(int) - clean,
    batches.unbatch(delta_of("matched_noise", None, data), 6),
  )


@pytest.mark.parametrize("seed", range(5))
def test_values_are_the_references_in_pictures_of_black_and_white(seed: int) -> None:
  clean, theirs, delta = _extreme(seed)
  assert np.mean((clean == 0) | (clean == 255)) > 0.3
  levels = 255.0 * delta
  ours = levels.round().astype(int)
  np.testing.assert_allclose(levels, ours, atol=1e-3)
  assert ((clean + ours >= 0) & (clean + ours <= 255)).all()
  for channel in range(3):
    flat = [np.sort(x[..., channel].reshape(6, -1), axis=1) for x in (ours, theirs)]
    np.testing.assert_array_equal(*flat)
  assert np.square(ours).mean() == np.square(theirs).mean()
  # Where a value is free to move it keeps no memory of its place.
  inside = (clean > RADIUS_255) & (clean < 255 - RADIUS_255)
  assert abs(np.corrcoef(ours[inside], theirs[inside])[0, 1]) < 0.1
  assert np.mean(ours[inside] != theirs[inside]) > 0.8


def test_values_stay_within_masks_and_limits_and_grey_pictures_grey() -> None:
  generator = np.random.default_rng(7)
  mask = generator.integers(0, 2, (6, 16, 16, 1)).astype(np.uint8)
  limit = generator.integers(1, 9, (6, 16, 16, 1)).astype(np.uint8)
  _, theirs, delta = _extreme(1, mask=mask, limit=limit)
  ours = (255.0 * delta).round().astype(int)
  np.testing.assert_array_equal(np.sort(ours, axis=None), np.sort(theirs, axis=None))
  assert (np.abs(ours) <= limit).all() and (ours[np.broadcast_to(mask == 0, ours.shape)] == 0).all()
  clean = np.repeat(generator.integers(0, 256, (2, 8, 8, 1)), 3, axis=3).astype(np.uint8)
  reference = np.where(clean > 127, clean - 5, clean + 3).astype(np.uint8)
  data = batches.make_batches(clean, 2, reference=reference, grey=np.ones(2, np.uint8))
  ours = (255.0 * delta_of("matched_noise", None, data)[0]).round().astype(int)
  assert (ours == ours[..., :1]).all()
  flat = [np.sort(x.reshape(2, -1)) for x in (ours, reference.astype(int) - clean)]
  np.testing.assert_array_equal(*flat)
