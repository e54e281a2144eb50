"""The survival formula on numbers that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from udp_jax.metrics import survival


def cell(*values: float, seeds: int = 1) -> np.ndarray:
  return np.tile(np.array(values, float), (seeds, 1))


def test_formula() -> None:
  """Clean pictures lose 0.1 to the purifier, protected ones keep 0.3 of their 0.8."""
  found = survival.survival(
    cell(0.35, 0.45), cell(0.1, 0.1), cell(0.7, 0.9), cell(0.0, 0.0), draws=50
  )
  assert found.kept == pytest.approx(0.3)
  assert found.effect == pytest.approx(0.8)
  assert found.value == pytest.approx(0.375)
  assert found.reason == ""
  # A resample has one of the pictures twice, or both.
  assert found.interval == pytest.approx([0.25 / 0.7, 0.35 / 0.9])


def test_falling_metrics_survive_like_rising_ones() -> None:
  rising = survival.survival(cell(0.4, 0.6), cell(0.2, 0.2), cell(1.0, 1.2), cell(0.1, 0.1))
  falling = survival.survival(cell(0.6, 0.4), cell(0.8, 0.8), cell(0.0, -0.2), cell(0.9, 0.9))
  assert rising.value == pytest.approx(0.3)
  assert falling.value == pytest.approx(rising.value)
  assert falling.interval == pytest.approx(rising.interval)


def test_reversed_effect_is_below_zero() -> None:
  found = survival.survival(cell(0.1, 0.1), cell(0.3, 0.3), cell(1.0, 1.1), cell(0.0, 0.0))
  assert found.value == pytest.approx(-0.2 / 1.05)


@pytest.mark.parametrize("effect", [(0.1, -0.1), (0.5, -0.3), (0.0, 0.0), (1e-14, 2e-14)])
def test_effect_within_noise_has_no_survival(effect: tuple[float, float]) -> None:
  found = survival.survival(cell(0.2, 0.2), cell(0.0, 0.0), cell(*effect), cell(0.0, 0.0))
  assert found.value is None and found.interval is None
  assert found.reason == survival.NO_EFFECT
  assert found.kept == pytest.approx(0.2) and found.effect == pytest.approx(np.mean(effect))


def test_threshold_is_two_standard_errors() -> None:
  """Differences 1 + s and 1 - s: mean 1, standard error s."""
  for s, defined in ((0.499, True), (0.501, False)):
    found = survival.survival(cell(1, 1), cell(0, 0), cell(1 + s, 1 - s), cell(0, 0))
    assert found.noise == pytest.approx(s)
    assert (found.value is not None) == defined


def test_spread_over_seeds_is_noise_too() -> None:
  """Every picture agrees within a seed, and the seeds contradict each other."""
  whole = np.array([[1.0, 1.0, 1.0], [-0.8, -0.8, -0.8]])
  zero = np.zeros((2, 3))
  assert survival.survival(whole, zero, whole, zero).reason == survival.NO_EFFECT
  whole = np.array([[1.0, 1.1, 0.9], [1.0, 0.9, 1.1]])
  assert survival.survival(whole, zero, whole, zero).value == pytest.approx(1.0)


def test_one_picture_and_one_seed_tell_no_noise() -> None:
  assert survival.survival(cell(1), cell(0), cell(1), cell(0)).reason == survival.NO_EFFECT


def test_what_was_not_measured() -> None:
  nothing = survival.survival(None, cell(0, 0), cell(1, 1), cell(0, 0))
  assert nothing == survival.Survival(None, None, None, None, None, survival.NOT_MEASURED)
  unknown = cell(np.nan, np.nan)
  assert survival.survival(unknown, cell(0, 0), cell(1, 1), cell(0, 0)) == nothing


def test_pictures_without_a_value_are_left_out_of_all_cells() -> None:
  found = survival.survival(
    cell(0.5, np.nan, 0.6), cell(0, 0, 0), cell(1.0, 9.0, 1.2), cell(0, 5, 0)
  )
  assert found.value == pytest.approx(0.5)


def test_table_names_the_worst_purifier() -> None:
  values = {
    ("clean", "none"): cell(0, 0),
    ("clean", "jpeg"): cell(0, 0),
    ("clean", "blur"): cell(0.5, 0.5),
    ("foo", "none"): cell(1.0, 1.1),
    ("foo", "jpeg"): cell(0.8, 0.9),
    ("foo", "blur"): cell(0.6, 0.6),
    ("noise", "none"): cell(0.1, -0.1),
    ("noise", "jpeg"): cell(0.1, 0.1),
    ("gone", "none"): cell(-1.0, -1.1),
    ("gone", "blur"): cell(0.0, 0.0),
  }
  foo, noise, gone = survival.table(
    values, ["foo", "noise", "gone"], ["jpeg", "blur"], clean="clean", none="none", draws=20
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
