"""Survival: the share of a protection's effect that is left after a purifier.

For a metric m, a protection p and a purifier q,

  survival(p, q) = (m(p, q) - m(clean, q)) / (m(p, none) - m(clean, none))

where m(p, q) is measured on pictures protected by p and purified by q. The numerator subtracts the
purifier's own effect on clean pictures, so that blurring everything does not count as protection.
1 means the whole effect is left, 0 none, negative values a reversed effect. Metrics may grow or
fall with the effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from udp_jax.metrics import statistics

FORMULA = "(m(protected, purified) - m(clean, purified)) / (m(protected, none) - m(clean, none))"
# An effect within this many standard errors of zero counts as none, so survival is undefined.
NOISE = 2.0

NO_EFFECT = "no effect to survive: within the noise of zero without a purifier"
NOT_MEASURED = "not measured"


class Survival(NamedTuple):
  """The share of one effect that is left.

  Attributes:
    value: the ratio; None if undefined.
    interval: bootstrap interval of the ratio over pictures, [low, high]; None if undefined.
    kept: the numerator: the remaining effect, in units of the metric; None if not measured.
    effect: the denominator: the effect without a purifier, in units of the metric.
    noise: standard error of `effect`.
    reason: why the ratio is undefined; "" if it is defined.
  """

  value: float | None
  interval: list[float] | None
  kept: float | None
  effect: float | None
  noise: float | None
  reason: str


def survival(
  protected_purified: np.ndarray | None,
  clean_purified: np.ndarray | None,
  protected: np.ndarray | None,
  clean: np.ndarray | None,
  *,
  draws: int = 1000,
  seed: int = 0,
) -> Survival:
  """Computes the survival of one effect after one purifier.

  The four cells hold the same pictures (or samples of the same keys) in the same order, so that
  differences are taken per picture. There is no effect if its mean is within `NOISE` standard
  errors of zero; the standard error is the larger of those over pictures and over seeds.

  Args:
    protected_purified: (seeds, pictures), values of protected and purified pictures; NaN for
      pictures without a value, None if the cell was not measured.
    clean_purified: values of clean, purified pictures, in the same form.
    protected: values of protected pictures without a purifier, in the same form.
    clean: values of clean pictures without a purifier, in the same form.
    draws: number of bootstrap resamples.
    seed: seed of the resamples.
  """
  cells = (protected_purified, clean_purified, protected, clean)
  if any(cell is None for cell in cells):
    return Survival(None, None, None, None, None, NOT_MEASURED)
  arrays = [np.asarray(cell, np.float64) for cell in cells if cell is not None]
  known = np.isfinite(np.concatenate(arrays)).all(axis=0)
  if not known.any():
    return Survival(None, None, None, None, None, NOT_MEASURED)
  after, clean_after, before, clean_before = (array[:, known] for array in arrays)
  left, whole = after - clean_after, before - clean_before
  kept, effect = float(left.mean()), float(whole.mean())
  noise = _standard_error(whole)
  if noise is None or abs(effect) <= NOISE * noise:
    return Survival(None, None, kept, effect, noise, NO_EFFECT)
  left_each, whole_each = left.mean(axis=0), whole.mean(axis=0)

  def ratio(rows: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
      return left_each[rows].mean(axis=1) / whole_each[rows].mean(axis=1)

  rows = statistics.resamples(len(left_each), draws=draws, seed=seed)
  return Survival(kept / effect, statistics.interval(ratio, rows), kept, effect, noise, "")


def _standard_error(whole: np.ndarray) -> float | None:
  """Standard error of the mean of (seeds, pictures); None for a single value."""
  seeds, count = whole.shape
  found = []
  if count > 1:
    found.append(float(whole.mean(axis=0).std(ddof=1)) / count**0.5)
  if seeds > 1:
    found.append(float(whole.mean(axis=1).std(ddof=1)) / seeds**0.5)
  # The minimum keeps rounding from counting as an effect if all differences are equal.
  return max(*found, 1e-12) if found else None


def over_purifiers(found: Mapping[str, Survival]) -> dict[str, Any]:
  """Returns the worst case and the mean over the purifiers with a defined survival.

  Args:
    found: survival by purifier, without "none".

  Returns:
    "worst" and its purifier "worst_purifier", "mean", "kept_worst" (the smallest remaining effect,
    signed so that the effect without a purifier is positive), and counts: "judged" purifiers out of
    "purifiers_count". Values are None if no survival is defined.
  """
  values = {name: s.value for name, s in found.items() if s.value is not None}
  kept = [
    s.kept * np.sign(s.effect)
    for s in found.values()
    if s.value is not None and s.kept is not None and s.effect is not None
  ]
  worst = min(values, key=lambda name: values[name]) if values else None
  return {
    "worst": None if worst is None else values[worst],
    "worst_purifier": worst,
    "mean": float(np.mean(list(values.values()))) if values else None,
    "kept_worst": float(min(kept)) if kept else None,
    "judged": len(values),
    "purifiers_count": len(found),
  }


def table(
  values: Mapping[tuple[str, str], np.ndarray],
  rows: Sequence[str],
  purifiers: Sequence[str],
  *,
  clean: str,
  none: str,
  draws: int = 1000,
  seed: int = 0,
) -> list[dict[str, Any]]:
  """Returns the survival of every row after every purifier, for one metric.

  Args:
    values: (row, purifier) -> (seeds, pictures); cells that were not measured are missing.
    rows: names of protections, without the clean row.
    purifiers: names of purifiers, without the identity.
    clean: name of the row of unprotected pictures.
    none: name of the purifier that does nothing.
    draws: number of bootstrap resamples.
    seed: seed of the resamples.

  Returns:
    One entry per row: "row", "effect", "noise", "reason", "purifiers" {name: {"value", "interval",
    "kept", "reason"}}, and the fields of `over_purifiers`.
  """
  lines = []
  for row in rows:
    found = {
      purifier: survival(
        values.get((row, purifier)),
        values.get((clean, purifier)),
        values.get((row, none)),
        values.get((clean, none)),
        draws=draws,
        seed=seed,
      )
      for purifier in purifiers
    }
    # Survival without a purifier is 1 by definition; it supplies the effect and its noise.
    own = [values.get((row, none)), values.get((clean, none))]
    alone = survival(own[0], own[1], own[0], own[1], draws=draws, seed=seed)
    lines.append(
      {
        "row": row,
        "effect": alone.effect,
        "noise": alone.noise,
        "reason": alone.reason,
        "purifiers": {
          name: {"value": s.value, "interval": s.interval, "kept": s.kept, "reason": s.reason}
          for name, s in found.items()
        },
        **over_purifiers(found),
      }
    )
  return lines
