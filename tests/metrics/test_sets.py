"""Samples against real pictures, feature vectors that can be checked by eye."""

from __future__ import annotations

import numpy as np
import pytest

from udp_jax.metrics import sets
from udp_jax.ops import frechet


def test_nearest_is_the_smallest_distance() -> None:
  real = np.array([[0.0, 0.0], [10.0, 0.0]])
  found = sets.nearest(np.array([[3.0, 4.0], [10.0, 1.0], [0.0, 0.0]]), real)
  np.testing.assert_allclose(found, [5.0, 1.0, 0.0], atol=1e-12)


def test_flags_are_those_of_precision_and_recall() -> None:
  generator = np.random.default_rng(0)
  real, fake = generator.normal(size=(40, 5)), 1.5 * generator.normal(size=(30, 5)) + 0.5
  expected = frechet.precision_recall(real, fake, k=3)
  assert sets.precision_flags(real, fake).mean() == pytest.approx(expected.precision)
  assert sets.precision_flags(fake, real).mean() == pytest.approx(expected.recall)
  assert 0.0 < expected.precision < 1.0


def test_too_few_neighbours_have_no_flags() -> None:
  assert np.isnan(sets.precision_flags(np.zeros((3, 2)), np.zeros((4, 2)))).all()


def test_distributions_are_not_told_from_few_pictures() -> None:
  generator = np.random.default_rng(0)
  many = generator.normal(size=(sets.MIN_FRECHET, 4))
  assert sets.distances(many, many[:-1]) == {}
  assert set(sets.distances(many, many + 1.0)) == {"fd", "mmd"}
  assert sets.distances(many, many + 1.0)["fd"] == pytest.approx(4.0, rel=1e-6)


def test_distribution_metrics():
  generator = np.random.default_rng(0)
  real = generator.normal(size=(300, 6))
  same = sets.distribution_metrics(real, real)
  assert same["fd"] == pytest.approx(0, abs=1e-8)
  assert same["precision"] == same["recall"] == 1
  assert set(same) == {"fd", "precision", "recall", "mmd", "mmd_se", "compared"}
  # Another sample of the same distribution is near, a shifted one is its shift away.
  near = sets.distribution_metrics(real, generator.normal(size=(300, 6)))
  shifted = sets.distribution_metrics(real, real + 5.0)
  assert near["fd"] < 1 and abs(near["mmd"]) < 5 * near["mmd_se"]
  assert shifted["fd"] == pytest.approx(6 * 25)
  assert shifted["precision"] == shifted["recall"] == 0
  assert shifted["mmd"] > 10 * shifted["mmd_se"] > 0


def test_statistics_are_the_mean_and_the_scatter():
  features = np.random.default_rng(0).normal(size=(50, 4))
  statistics = sets.statistics(features)
  np.testing.assert_allclose(statistics.mean, features.mean(0))
  np.testing.assert_allclose(statistics.m2 / 49, np.cov(features, rowvar=False))


def test_counts_are_made_equal() -> None:
  """A Frechet distance of few from many is not that of equal counts."""
  generator = np.random.default_rng(1)
  real, fake = generator.normal(size=(60, 8)), generator.normal(size=(900, 8))
  some, fewer = sets.equal(real, fake)
  assert some is real and len(fewer) == 60
  assert {tuple(row) for row in fewer} <= {tuple(row) for row in fake}
  np.testing.assert_array_equal(fewer, sets.equal(fake, real)[0])
  assert not np.array_equal(fewer, sets.equal(real, fake, seed=1)[1])
  found = sets.distribution_metrics(real, fake)
  assert found == sets.distribution_metrics(real, fewer) and found["compared"] == 60
