"""The survival formula on numbers that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from udp_jax.metrics import survival


def survived(*cells: np.ndarray | None, trained: bool = False) -> survival.Survival:
  return survival.survival(*cells, trained=trained)


def cell(*values: float, seeds: int = 1) -> np.ndarray:
  return np.tile(np.array(values, float), (seeds, 1))


def test_formula() -> None:
  """Clean pictures lose 0.1 to the purifier, protected ones keep 0.3 of their 0.8."""
  found = survived(
    cell(0.35, 0.45, 0.4), cell(0.1, 0.1, 0.1), cell(0.7, 0.9, 0.8), cell(0.0, 0.0, 0.0)
  )
  assert found.kept == pytest.approx(0.3)
  assert found.effect == pytest.approx(0.8)
  assert found.value == pytest.approx(0.375)
  assert found.reason == ""
  # Fieller's closed form, from the sample's covariance matrix and Student's t.
  left, whole = np.array([0.25, 0.35, 0.3]), np.array([0.7, 0.9, 0.8])
  covariance = np.cov(left, whole) / 3
  t = stats.t.ppf(0.975, 2)
  a = 0.8**2 - t**2 * covariance[1, 1]
  b = 0.3 * 0.8 - t**2 * covariance[0, 1]
  c = 0.3**2 - t**2 * covariance[0, 0]
  root = np.sqrt(b * b - a * c)
  np.testing.assert_allclose(found.interval, [(b - root) / a, (b + root) / a], rtol=1e-6)


def test_falling_metrics_survive_like_rising_ones() -> None:
  rising = survived(cell(0.4, 0.6, 0.5), cell(0.2, 0.2, 0.2), cell(1.0, 1.2, 1.1), cell(*[0.1] * 3))
  falling = survived(
    cell(0.6, 0.4, 0.5), cell(0.8, 0.8, 0.8), cell(0, -0.2, -0.1), cell(*[0.9] * 3)
  )
  assert rising.value == pytest.approx(0.3)
  assert falling.value == pytest.approx(rising.value)
  assert falling.interval == pytest.approx(rising.interval)


def test_reversed_effect_is_below_zero() -> None:
  found = survived(cell(0.1, 0.1, 0.1), cell(0.3, 0.3, 0.3), cell(1.0, 1.1, 1.05), cell(0, 0, 0))
  assert found.value == pytest.approx(-0.2 / 1.05)


@pytest.mark.parametrize(
  "effect", [(0.1, -0.1, 0.0), (0.5, -0.3, 0.1), (0.0, 0.0, 0.0), (1e-14, 2e-14, 0)]
)
def test_effect_within_noise_has_no_survival(effect: tuple[float, ...]) -> None:
  found = survived(cell(0.2, 0.2, 0.2), cell(0, 0, 0), cell(*effect), cell(0, 0, 0))
  assert found.value is None and found.interval is None
  assert found.reason == survival.NO_EFFECT
  assert found.kept == pytest.approx(0.2) and found.effect == pytest.approx(np.mean(effect))


def test_an_effect_is_one_whose_interval_excludes_zero() -> None:
  """Differences 1 + s, 1 and 1 - s: mean 1, standard error s / sqrt(3)."""
  limit = 3**0.5 / stats.t.ppf(0.975, 2)
  for s, defined in ((0.999 * limit, True), (1.001 * limit, False)):
    found = survived(cell(1, 1, 1), cell(0, 0, 0), cell(1 + s, 1, 1 - s), cell(0, 0, 0))
    assert found.noise == pytest.approx(s / 3**0.5)
    assert (found.value is not None) == defined


def test_spread_over_trainings_is_noise() -> None:
  """Every picture agrees within a seed, and the seeds contradict each other."""
  whole = np.repeat([[1.0], [-0.2], [0.9]], 8, axis=1) + 0.01 * np.arange(8)
  zero = np.zeros_like(whole)
  assert survived(whole, zero, whole, zero).value == pytest.approx(1.0)
  assert survived(whole, zero, whole, zero, trained=True).reason == survival.NO_EFFECT


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_trainings_have_no_effect(seeds: int) -> None:
  ones, zeros = cell(1, 1.1, 0.9, seeds=seeds), cell(0, 0, 0, seeds=seeds)
  found = survived(ones, zeros, ones, zeros, trained=True)
  assert found.reason == survival.TOO_FEW and found.value is None and found.interval is None
  assert found.effect == pytest.approx(1.0)


def test_few_pictures_and_one_seed_tell_no_noise() -> None:
  assert survived(cell(1, 1.1), cell(0, 0), cell(1, 1.1), cell(0, 0)).reason == survival.TOO_FEW
  assert survived(cell(1), cell(0), cell(1), cell(0)).reason == survival.TOO_FEW


def test_what_was_not_measured() -> None:
  nothing = survived(None, cell(0, 0), cell(1, 1), cell(0, 0))
  assert nothing == survival.Survival(None, None, None, None, None, survival.NOT_MEASURED)
  unknown = cell(np.nan, np.nan)
  assert survived(unknown, cell(0, 0), cell(1, 1), cell(0, 0)) == nothing


def test_pictures_without_a_value_are_left_out_of_all_cells() -> None:
  zeros = cell(0, 0, 0, 0)
  found = survived(cell(0.5, np.nan, 0.6, 0.55), zeros, cell(1.09, 9, 1.11, 1.1), cell(0, 5, 0, 0))
  assert found.value == pytest.approx(0.5)


def test_equal_effects_tell_no_noise() -> None:
  """Three pictures whose class is lost to the protection: one answer, three times."""
  found = survived(cell(1, 1, 1), cell(1, 1, 1), cell(0, 0, 0), cell(1, 1, 1))
  assert found.reason == survival.NO_SPREAD and found.value is None and found.p is None


def test_windows_of_a_picture_are_one_value() -> None:
  """Nine windows of three pictures are as three pictures; of two, too few."""
  whole, left = np.array([0.7, 0.9, 0.8]), np.array([0.25, 0.35, 0.3])
  shift = np.tile([-0.01, 0.0, 0.01], 3)
  groups, zeros = np.repeat([0, 1, 2], 3), np.zeros((1, 9))
  windows = (left[groups] + shift)[None], zeros, (whole[groups] + shift)[None], zeros
  found = survival.survival(*windows, trained=False, groups=groups)
  alone = survived(cell(*left), cell(0, 0, 0), cell(*whole), cell(0, 0, 0))
  assert found.value == pytest.approx(alone.value)
  assert found.interval == pytest.approx(alone.interval)
  few = survival.survival(*windows, trained=False, groups=groups // 2)
  assert few.reason == survival.TOO_FEW and few.effect == pytest.approx(0.8)


def test_an_effect_passes_holm_over_the_rows() -> None:
  """A row of p = 0.03 has an effect alone, and none among ten rows of noise."""
  draw = np.random.default_rng(5).normal(size=20)
  draw = (draw - draw.mean()) / draw.std(ddof=1) * 20**0.5
  weak, zero = (draw + stats.t.isf(0.015, 19))[None], np.zeros((1, 20))
  values = {("clean", "none"): zero, ("clean", "q"): zero}
  values |= {("weak", "none"): weak, ("weak", "q"): 0.5 * weak}
  values |= {(str(n), p): draw[None] for n in range(10) for p in ("none", "q")}
  for rows, defined in ((["weak"], True), (["weak", *map(str, range(10))], False)):
    first, *_ = survival.table(values, rows, ["q"], clean="clean", none="none", trained=False)
    assert (first["purifiers"]["q"]["value"] is not None) == defined
    assert first["reason"] == ("" if defined else survival.NO_EFFECT)


def test_table_names_the_worst_purifier() -> None:
  values = {
    ("clean", "none"): cell(0, 0, 0),
    ("clean", "jpeg"): cell(0, 0, 0),
    ("clean", "blur"): cell(0.5, 0.5, 0.5),
    ("foo", "none"): cell(1.0, 1.1, 1.05),
    ("foo", "jpeg"): cell(0.8, 0.9, 0.85),
    ("foo", "blur"): cell(0.6, 0.6, 0.6),
    ("noise", "none"): cell(0.1, -0.1, 0.0),
    ("noise", "jpeg"): cell(0.1, 0.1, 0.1),
    ("gone", "none"): cell(-1.0, -1.1, -1.05),
    ("gone", "blur"): cell(0.0, 0.0, 0.0),
  }
  foo, noise, gone = survival.table(
    values, ["foo", "noise", "gone"], ["jpeg", "blur"], clean="clean", none="none", trained=False
  )
  assert foo["effect"] == pytest.approx(1.05) and foo["reason"] == ""
  assert foo["purifiers"]["jpeg"]["value"] == pytest.approx(0.85 / 1.05)
  assert (foo["worst_purifier"], foo["judged"], foo["purifiers_count"]) == ("blur", 2, 2)
  assert foo["worst"] == pytest.approx(0.1 / 1.05)
  assert foo["mean"] == pytest.approx((0.85 + 0.1) / 2 / 1.05)
  assert foo["kept_worst"] == pytest.approx(0.1)
  assert (noise["worst"], noise["mean"], noise["judged"]) == (None, None, 0)
  assert noise["reason"] == survival.NO_EFFECT
  # One purifier failed; the effect of the other is counted towards where it points.
  assert gone["purifiers"]["jpeg"]["reason"] == survival.NOT_MEASURED
  assert gone["judged"] == 1 and gone["kept_worst"] == pytest.approx(0.5)
  assert gone["worst"] == pytest.approx(0.5 / 1.05)


def _trained(seeds: int, pictures: int, repeats: int, effect: float, kept: tuple[float, ...]):
  """Yields cells of simulated studies: each training moves its values by 0.3 standard deviations.

  Args:
    seeds: number of trainings.
    pictures: number of pictures.
    repeats: number of studies.
    effect: effect without a purifier, in standard deviations.
    kept: true survival after each purifier.
  """
  draw = np.random.default_rng([seeds, pictures]).normal
  names = [("foo", n) for n in ("none", *map(str, range(len(kept))))]
  true = dict(zip(names, (1.0, *kept), strict=True))
  for _ in range(repeats):
    picture, own = draw(size=pictures), draw(size=pictures)
    cells = {}
    for place in [*names, *(("clean", n) for _, n in names)]:
      moved = 0.3 / 2**0.5 * draw(size=(seeds, 1)) + 0.3 * draw(size=(seeds, pictures))
      cells[place] = picture + moved + true.get(place, 0.0) * (effect + 0.5 * own)
    yield cells


@pytest.mark.parametrize("seeds", [3, 4, 5])
@pytest.mark.parametrize("pictures", [20, 64])
def test_intervals_of_survival_cover(seeds: int, pictures: int) -> None:
  inside = []
  for cells in _trained(seeds, pictures, 1000, 2.0, (0.5,)):
    [line] = survival.table(cells, ["foo"], ["0"], clean="clean", none="none", trained=True)
    found = line["purifiers"]["0"]["interval"]
    if found is not None:
      inside.append(found[0] <= 0.5 <= found[1])
  # Two standard errors of the simulation beside the limits.
  assert len(inside) > 800 and 0.92 - 0.02 <= np.mean(inside) <= 0.97 + 0.015


def test_intervals_of_the_worst_case_cover() -> None:
  """The smallest of several noisy shares, of which some are equal."""
  inside = []
  for cells in _trained(4, 20, 300, 4.0, (0.5, 0.5, 0.5, 0.6)):
    [line] = survival.table(cells, ["foo"], [*"0123"], clean="clean", none="none", trained=True)
    if line["worst_interval"] is not None:
      low, high = line["worst_interval"]
      inside.append(low <= 0.5 <= high)
      assert low < line["worst"] < high
  assert len(inside) > 200 and np.mean(inside) >= 0.92


@pytest.mark.parametrize("seeds", [3, 5])
def test_chance_rarely_counts_as_an_effect(seeds: int) -> None:
  found = [
    survived(cells["foo", "none"], cells["clean", "none"], cells["foo", "none"],
             cells["clean", "none"], trained=True).reason == ""
    for cells in _trained(seeds, 20, 1500, 0.0, (1.0,))
  ]  # fmt: skip
  assert np.mean(found) <= 0.05 + 0.012
