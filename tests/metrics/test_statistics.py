"""Means and how far they can be trusted, against SciPy, written-out sums, and simulations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from udp_jax.metrics import statistics

REPEATS = 10_000
# Two standard errors of a share in so many simulations.
CHANCE = 0.004
# A value's parts: standard deviations of seeds, pictures, and the rest. The second is a shift of
# 0.3 from training alone.
PARTS = {"no shift": (0.0, 1.0, 1.0), "shift": (0.3, 1.0, 1.0), "little rest": (0.3, 1.0, 0.3)}


def simulate(
  parts: tuple[float, float, float], seeds: int, pictures: int, *, repeats: int = REPEATS, seed=0
) -> np.ndarray:
  """Values (repeats, seeds, pictures) of the crossed model with mean zero."""
  draw = np.random.default_rng([seed, seeds, pictures]).normal
  shapes = (repeats, seeds, 1), (repeats, 1, pictures), (repeats, seeds, pictures)
  return np.sum([np.broadcast_to(p * draw(size=s), shapes[2]) for p, s in zip(parts, shapes)], 0)


def coverage(values: np.ndarray) -> float:
  mean, spread = statistics.estimate(values, trained=True)
  return float(np.mean(abs(mean) <= spread.reach()))


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("seeds", [3, 4, 5])
@pytest.mark.parametrize("pictures", [20, 64])
def test_intervals_cover_what_they_say(parts, seeds: int, pictures: int) -> None:
  assert 0.92 <= coverage(simulate(parts, seeds, pictures)) <= 0.97 + CHANCE


@pytest.mark.parametrize("parts", [(0.0, 0.0, 1.0), (0.3, 0.0, 1.0), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_cover_without_effects_of_pictures_too(parts, seeds: int) -> None:
  """Samples of models differ between seeds, so that nothing belongs to a picture."""
  assert 0.92 <= coverage(simulate(parts, seeds, 64)) <= 0.995


def test_pictures_alone_would_cover_half() -> None:
  """What the test above can tell: intervals over pictures miss the shift of training."""
  mean, spread = statistics.estimate(simulate((0.3, 1.0, 0.3), 3, 64), trained=False)
  assert np.mean(abs(mean) <= spread.reach()) < 0.8


def test_paired_differences_cover() -> None:
  """Rows share pictures and draws, each row's training moves its own values."""
  ours, theirs = (
    simulate((0.3 / 2**0.5, 0.5, 1.0), 3, 20, seed=s) + simulate((0.0, 1.0, 0.0), 3, 20, seed=9)
    for s in (1, 2)
  )
  assert 0.92 <= coverage(ours - theirs) <= 0.97 + CHANCE


@pytest.mark.parametrize("seeds", [1, 3])
def test_windows_of_few_pictures_are_no_independent_pictures(seeds: int) -> None:
  """Of 4 paintings x 32 windows with an intraclass correlation of 0.1, paintings are the factor."""
  draw = np.random.default_rng([7, seeds]).normal
  groups = np.repeat(np.arange(4), 32)
  values = 0.1**0.5 * draw(size=(2000, 1, 4))[..., groups] + 0.9**0.5 * draw(size=(2000, 1, 128))
  if seeds > 1:
    values = values + 0.3 * draw(size=(2000, seeds, 1)) + 0.3 * draw(size=(2000, seeds, 128))
  covered = []
  for given in (groups, None):
    mean, spread = statistics.estimate(values, trained=seeds > 1, groups=given)
    covered.append(np.mean(abs(mean) <= spread.reach()))
  assert covered[0] >= 0.92
  if seeds == 1:
    assert covered[1] < 0.8  # What the test can tell.


def test_groups_count_equally() -> None:
  values = np.array([[1.0, 3.0, 5.0, 7.0, np.nan, 9.0]])
  groups = np.array([4, 4, 4, 2, 2, 0])
  found = statistics.summarise(values, trained=False, groups=groups)
  expected = stats.ttest_1samp([3.0, 7.0, 9.0], 0.0)
  assert found["mean"] == pytest.approx(19 / 3) and found["count"] == 5
  np.testing.assert_allclose(found["interval"], expected.confidence_interval(statistics.LEVEL))
  few = statistics.summarise(values[:, :5], trained=False, groups=groups[:5])
  assert few["interval"] is None and few["p"] is None and few["mean"] == 5.0
  assert "3 groups" in statistics.meaning(groups)
  assert statistics.meaning() == statistics.MEANING


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
@pytest.mark.parametrize("trained", [False, True])
def test_equal_values_have_no_interval(value: float, trained: bool) -> None:
  found = statistics.summarise(np.full((3, 7), value), trained=trained)
  assert found["mean"] == pytest.approx(value)
  assert found["interval"] is None and found["p"] is None


def test_shares_of_hits_against_scipy() -> None:
  for hits, count in ((6, 6), (5, 12), (0, 3)):
    values = (np.arange(count) < hits).astype(float)[None]
    found = statistics.summarise(values, trained=False, flags=True)
    expected = stats.binomtest(hits, count).proportion_ci(statistics.LEVEL, method="wilson")
    np.testing.assert_allclose(found["interval"], expected, atol=1e-12)
    assert found["p"] is None


def test_summary_of_pictures_and_seeds() -> None:
  values = np.array([[1.0, 2.0, np.nan, 3.0], [3.0, 4.0, 5.0, 5.0]])
  found = statistics.summarise(values, trained=False)
  assert found["mean"] == 3.0 and found["count"] == 3
  assert found["std"] == pytest.approx(1.0)
  assert found["seed_std"] == pytest.approx(2.0**0.5)


def test_draws_of_pictures_against_scipy() -> None:
  values = np.random.default_rng(4).gamma(2.0, size=(2, 17))
  found = statistics.summarise(values, trained=False)
  expected = stats.ttest_1samp(values.mean(0), 0.0)
  np.testing.assert_allclose(found["interval"], expected.confidence_interval(statistics.LEVEL))
  assert found["p"] == pytest.approx(expected.pvalue)


def test_one_value_a_training_against_scipy() -> None:
  values = [3.0, 4.5, 4.0, 6.0]
  expected = stats.ttest_1samp(values, 0.0)
  for found in (
    statistics.over_seeds(values),
    statistics.summarise(np.array(values)[:, None], trained=True),
  ):
    np.testing.assert_allclose(found["interval"], expected.confidence_interval(statistics.LEVEL))
    assert found["p"] == pytest.approx(expected.pvalue)


def test_mean_squares_by_hand() -> None:
  """The table of a two-way analysis of variance, written out."""
  values = np.random.default_rng(1).normal(size=(3, 5))
  found = statistics.products(values, values)
  total, of_seed, of_picture = values.mean(), values.mean(1), values.mean(0)
  rest = values - of_seed[:, None] - of_picture + total
  assert found.seed == pytest.approx(5 * ((of_seed - total) ** 2).sum() / 2)
  assert found.picture == pytest.approx(3 * ((of_picture - total) ** 2).sum() / 4)
  assert found.rest == pytest.approx((rest**2).sum() / 8)


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_trainings_have_no_interval(seeds: int) -> None:
  found = statistics.summarise(np.random.default_rng(0).normal(5.0, size=(seeds, 40)), trained=True)
  assert found["interval"] is None and found["p"] is None and found["mean"] is not None
  assert statistics.over_seeds([1.0, 2.0][:seeds])["interval"] is None


def test_two_pictures_have_no_interval() -> None:
  found = statistics.summarise(np.array([[2.0, 3.0]]), trained=False)
  assert found["interval"] is None and found["p"] is None and found["std"] is not None


def test_one_picture_has_no_spread() -> None:
  found = statistics.summarise(np.array([[2.0]]), trained=False)
  undefined = dict.fromkeys(("std", "seed_std", "interval", "p"))
  assert found == {"mean": 2.0, **undefined, "count": 1}


def test_nothing_has_no_mean() -> None:
  assert statistics.summarise(np.full((1, 3), np.nan), trained=False)["mean"] is None
  assert statistics.summarise(np.zeros((1, 0)), trained=True)["count"] == 0


def test_over_seeds() -> None:
  summary = statistics.over_seeds([1.0, np.float32(3.0), float("nan"), float("inf")])
  assert summary["mean"] == 2.0 and summary["std"] == pytest.approx(np.sqrt(2))
  assert len(summary["values"]) == 4 and summary["interval"] is None
  nothing = {"std": None, "interval": None, "p": None}
  assert statistics.over_seeds([2.5]) == {"mean": 2.5, **nothing, "values": [2.5]}
  assert statistics.over_seeds([float("nan")])["mean"] is None
  assert statistics.over_seeds([]) == {"mean": None, **nothing, "values": []}
  # What no training changes, such as a picture's PSNR, has nothing to say of trainings.
  assert statistics.over_seeds([2.5] * 4)["interval"] is None


def test_holm_by_hand() -> None:
  found = statistics.holm([0.01, None, 0.04, 0.03, 0.005])
  assert found == [pytest.approx(0.03), None] + [pytest.approx(p) for p in (0.06, 0.06, 0.02)]
  assert statistics.holm([0.9, 0.8]) == [1.0, 1.0] and statistics.holm([]) == []


def test_holm_keeps_the_error_of_a_table() -> None:
  """Of 12 claims without an effect, the table marks any in at most 5 % of cases."""
  tables = simulate((0.3, 1.0, 1.0), 3, 20, repeats=12 * 1000).reshape(1000, 12, 3, 20)
  p_values = statistics.p_value(*statistics.estimate(tables, trained=True))
  marked = [min(statistics.holm(table)) < 1.0 - statistics.LEVEL for table in p_values.tolist()]
  assert np.mean(p_values.min(1) < 0.05) > 0.3 and np.mean(marked) <= 0.05 + 0.02
