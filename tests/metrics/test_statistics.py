"""Means and how far they can be trusted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from udp_jax.metrics import statistics


def test_summary_of_pictures_and_seeds() -> None:
  values = np.array([[1.0, 2.0, np.nan, 3.0], [3.0, 4.0, 5.0, 5.0]])
  found = statistics.summarise(values, draws=200, seed=0)
  assert found["mean"] == 3.0 and found["count"] == 3
  assert found["std"] == pytest.approx(1.0)
  assert found["seed_std"] == pytest.approx(2.0**0.5)
  low, high = found["interval"]
  assert 2.0 <= low < 3.0 < high <= 4.0


def test_one_picture_has_no_spread() -> None:
  found = statistics.summarise(np.array([[2.0]]), draws=10, seed=0)
  assert found == {"mean": 2.0, "std": None, "seed_std": None, "interval": None, "count": 1}


def test_nothing_has_no_mean() -> None:
  assert statistics.summarise(np.full((1, 3), np.nan), draws=10, seed=0)["mean"] is None
  assert statistics.summarise(np.zeros((1, 0)), draws=10, seed=0)["count"] == 0


def test_interval_covers_the_mean_about_as_often_as_it_says() -> None:
  generator = np.random.default_rng(3)
  inside = 0
  for trial in range(200):
    found = statistics.summarise(generator.normal(size=(1, 40)), draws=200, seed=trial)
    low, high = found["interval"]
    inside += low <= 0.0 <= high
  assert 0.88 <= inside / 200 <= 0.99


def test_summarise():
  summary = statistics.over_seeds([1.0, np.float32(3.0), float("nan"), float("inf")])
  assert summary["mean"] == 2.0 and summary["std"] == pytest.approx(np.sqrt(2))
  assert len(summary["values"]) == 4
  assert statistics.over_seeds([2.5]) == {"mean": 2.5, "std": None, "values": [2.5]}
  assert statistics.over_seeds([float("nan")])["mean"] is None
  assert statistics.over_seeds([]) == {"mean": None, "std": None, "values": []}


@pytest.mark.parametrize("count", [2, 17, 40])
def test_interval_against_scipy(count: int) -> None:
  """The same resamples; SciPy has its own code for them and for their quantiles."""
  values = np.random.default_rng(4).gamma(2.0, size=count)
  found = statistics.summarise(values[None], draws=999, seed=5)["interval"]
  expected = stats.bootstrap(
    (values,),
    np.mean,
    n_resamples=999,
    confidence_level=statistics.LEVEL,
    method="percentile",
    rng=np.random.default_rng(5),
  ).confidence_interval
  np.testing.assert_allclose(found, expected, rtol=1e-12)
