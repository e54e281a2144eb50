"""Noise of another method's values, in random order."""

from __future__ import annotations

import numpy as np

from tests.protections.controls import delta_of, with_reference
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
