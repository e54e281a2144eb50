"""Controls: noise and borrowed perturbations that a method must beat."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from udp_jax import protections, training
from udp_jax.errors import ConfigError

RADIUS_255 = 8
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def grey():
  """Pictures that no budget pushes out of range, and some protected by a method of structure."""
  generator = np.random.default_rng(0)
  clean = generator.integers(60, 190, (10, 8, 8, 3)).astype(np.uint8)
  strength = np.arange(10)[:, None, None, None] % (RADIUS_255 + 1)
  stripes = np.where(np.arange(8) % 2, 1, -1)[:, None] * np.ones(3, int)
  return clean, (clean + strength * stripes).astype(np.uint8)


def delta_of(name, model, data, radius_255=RADIUS_255, **options):
  protection = protections.build(name, model, {"radius_255": radius_255} | options)
  return np.asarray(jax.jit(protection.init)(KEY, data, None).delta)


def with_reference(grey, size=4):
  return training.make_batches(grey[0], size, reference=grey[1])


def test_matched_noise_keeps_the_values_of_each_picture(grey, gaussian_model):
  data = with_reference(grey)
  delta = training.unbatch(delta_of("matched_noise", gaussian_model, data), 10)
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
    training.unbatch(delta_of("matched_noise", gaussian_model, with_reference(grey, size)), 10)
    for size in (4, 10)
  ]
  np.testing.assert_array_equal(*deltas)


@pytest.mark.parametrize("count, size", [(10, 4), (10, 10), (7, 3), (5, 5), (3, 2), (2, 2)])
def test_shuffled_delta_gives_no_picture_its_own(grey, gaussian_model, count, size):
  pictures = tuple(a[:count] for a in grey)
  # Distinct strengths tell whose perturbation it is.
  data = with_reference(pictures, size)
  delta = training.unbatch(delta_of("shuffled_delta", gaussian_model, data), count)
  levels = np.round(255 * np.abs(delta)).max((1, 2, 3))
  own = np.arange(count) % (RADIUS_255 + 1)
  # Pictures 0 and 9 are both unperturbed in a set of ten.
  assert not np.any((levels == own) & (own > 0))
  assert set(levels) <= set(own)
  assert len(set(levels)) > 1


@pytest.mark.parametrize("name", ["matched_noise", "shuffled_delta"])
def test_borrowed_perturbations_keep_a_smaller_budget_and_the_box(name, grey, gaussian_model):
  white = np.full_like(grey[0], 255)
  data = training.make_batches(white, 4, reference=white - (grey[0] % 9))
  delta = delta_of(name, gaussian_model, data, radius_255=3)
  assert delta.min() == np.float32(-3 / 255) and delta.max() <= 0


@pytest.mark.parametrize("name", ["matched_noise", "shuffled_delta"])
def test_borrowed_perturbations_need_a_reference(name, grey, gaussian_model):
  protection = protections.build(name, gaussian_model, {"radius_255": RADIUS_255})
  assert protection.needs_reference
  with pytest.raises(ValueError, match="needs `reference` pictures"):
    protection.init(KEY, training.make_batches(grey[0], 4), None)


@pytest.mark.parametrize("distribution", ["uniform", "sign"])
def test_random_noise(distribution, grey, gaussian_model):
  data = training.make_batches(grey[0], 5)
  delta = 255 * delta_of("random_noise", gaussian_model, data, distribution=distribution)
  if distribution == "sign":
    np.testing.assert_allclose(np.abs(delta), RADIUS_255, rtol=1e-6)
  else:
    quantiles = np.quantile(delta, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(quantiles, [-8, -4, 0, 4, 8], atol=0.8)
  assert abs(delta.mean()) < 5 * RADIUS_255 / np.sqrt(delta.size)


def test_random_noise_of_an_unknown_kind(gaussian_model):
  with pytest.raises(ConfigError, match="'pink'; known: zero, uniform, sign"):
    protections.build("random_noise", gaussian_model, {"radius_255": 8, "distribution": "pink"})
