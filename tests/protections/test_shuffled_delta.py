"""Perturbations of other pictures, and what all borrowed ones promise."""

from __future__ import annotations

import numpy as np
import pytest

from tests.protections.controls import KEY, RADIUS_255, delta_of, with_reference
from udp_jax import protections
from udp_jax.data import batches


@pytest.mark.parametrize("count, size", [(10, 4), (10, 10), (7, 3), (5, 5), (3, 2), (2, 2)])
def test_shuffled_delta_gives_no_picture_its_own(grey, gaussian_model, count, size):
  pictures = tuple(a[:count] for a in grey)
  # Distinct strengths tell whose perturbation it is.
  data = with_reference(pictures, size)
  delta = batches.unbatch(delta_of("shuffled_delta", gaussian_model, data), count)
  levels = np.round(255 * np.abs(delta)).max((1, 2, 3))
  own = np.arange(count) % (RADIUS_255 + 1)
  # Pictures 0 and 9 are both unperturbed in a set of ten.
  assert not np.any((levels == own) & (own > 0))
  assert set(levels) <= set(own)
  assert len(set(levels)) > 1


@pytest.mark.parametrize("name", ["matched_noise", "shuffled_delta"])
def test_borrowed_perturbations_keep_a_smaller_budget_and_the_box(name, grey, gaussian_model):
  white = np.full_like(grey[0], 255)
  data = batches.make_batches(white, 4, reference=white - (grey[0] % 9))
  delta = delta_of(name, gaussian_model, data, radius_255=3)
  assert delta.min() == np.float32(-3 / 255) and delta.max() <= 0


@pytest.mark.parametrize("name", ["matched_noise", "shuffled_delta"])
def test_borrowed_perturbations_need_a_reference(name, grey, gaussian_model):
  protection = protections.build(name, gaussian_model, {"radius_255": RADIUS_255})
  assert protection.needs_reference
  with pytest.raises(ValueError, match="needs `reference` pictures"):
    protection.init(KEY, batches.make_batches(grey[0], 4), None)
