"""Survival: the share of a protection's effect that is left after a purifier.

For a metric m, a protection p and a purifier q,

  survival(p, q) = (m(p, q) - m(clean, q)) / (m(p, none) - m(clean, none))

where m(p, q) is measured on pictures protected by p and purified by q. The numerator subtracts the
purifier's own effect on clean pictures, so that blurring everything does not count as protection.
1 means the whole effect is left, 0 none, negative values a reversed effect. Metrics may grow or
fall with the effect.

Intervals are Fieller's (J. R. Stat. Soc. B 16, 1954): all ratios r for which the t test of
`statistics` does not reject that the mean of numerator - r * denominator is zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from udp_jax.metrics import statistics

FORMULA = "(m(protected, purified) - m(clean, purified)) / (m(protected, none) - m(clean, none))"
GATE = (
  f"there is an effect where its {100 * statistics.LEVEL:g} % interval without a purifier excludes "
  "zero, also after Holm's correction over all rows of a table; where models are trained, that "
  f"takes {statistics.MIN_SEEDS} seeds"
)
# What readers have to know of numbers that were chosen by what they are.
SELECTION = (
  "As survival is shown only where there is an effect, chance has often made the effect too large, "
  "so the shares shown are too low on average. The worst case is the smallest of several estimates "
  "and so lies too low itself; only its interval allows for that."
)

NO_EFFECT = "no effect to survive: within the noise of zero without a purifier"
TOO_FEW = (
  f"too few to survive on: under {statistics.MIN_PICTURES} pictures (groups, where pictures have "
  f"groups) or under {statistics.MIN_SEEDS} trained models"
)
NO_SPREAD = "no spread to survive by: equal effects do not tell how far they can be trusted"
NOT_MEASURED = "not measured"
# Each divides the bracket of an interval's end by 64.
_REFINEMENTS = 6


class Survival(NamedTuple):
  """The share of one effect that is left.

  Attributes:
    value: the ratio; None if undefined.
    interval: Fieller's interval of the ratio, [low, high]; None if undefined or unbounded.
    kept: the numerator: the remaining effect, in units of the metric; None if not measured.
    effect: the denominator: the effect without a purifier, in units of the metric.
    noise: standard error of `effect`; None if there are too few values.
    reason: why the ratio is undefined; "" if it is defined.
    p: p value of `effect` against zero; None if there are too few values.
  """

  value: float | None
  interval: list[float] | None
  kept: float | None
  effect: float | None
  noise: float | None
  reason: str
  p: float | None = None


def survival(
  protected_purified: np.ndarray | None,
  clean_purified: np.ndarray | None,
  protected: np.ndarray | None,
  clean: np.ndarray | None,
  *,
  trained: bool,
  comparisons: int = 1,
  groups: np.ndarray | None = None,
) -> Survival:
  """Computes the survival of one effect after one purifier.

  The four cells hold the same pictures (or samples of the same keys) in the same order, so that
  differences are taken per picture. The ratio is defined where the interval of the effect (the
  denominator) excludes zero at `statistics.LEVEL`.

  Args:
    protected_purified: (seeds, pictures), values of protected and purified pictures; NaN for
      pictures without a value, None if the cell was not measured.
    clean_purified: values of clean, purified pictures, in the same form.
    protected: values of protected pictures without a purifier, in the same form.
    clean: values of clean pictures without a purifier, in the same form.
    trained: whether a model was trained for every seed, so that seeds are a random factor.
    comparisons: number of intervals that shall hold together, for the interval of a minimum.
    groups: (pictures,), groups of pictures that share content, as for `statistics.estimate`.
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
  own = None if groups is None else groups[known]
  found = statistics.estimate(whole, trained=trained, groups=own)
  left, whole = statistics.by_group(left, own), statistics.by_group(whole, own)
  kept, effect = float(left.mean()), float(whole.mean())
  if found is None:
    return Survival(None, None, kept, effect, None, TOO_FEW)
  noise = float(found[1].error)
  p = float(statistics.p_value(*found))
  if abs(effect) <= found[1].reach():
    return Survival(None, None, kept, effect, noise, NO_EFFECT, p)
  if not statistics.has_spread(*found):
    return Survival(None, None, kept, effect, noise, NO_SPREAD)
  limits = _fieller(left, whole, trained, comparisons)
  return Survival(kept / effect, limits, kept, effect, noise, "", p)


def _fieller(
  left: np.ndarray, whole: np.ndarray, trained: bool, comparisons: int
) -> list[float] | None:
  """Returns the interval of left.mean() / whole.mean(); None if it is unbounded."""
  kept, effect = float(left.mean()), float(whole.mean())
  pairs = ((left, left), (left, whole), (whole, whole))
  parts = [statistics.products(*pair) for pair in pairs]

  def rejected(a: float, b: np.ndarray) -> np.ndarray:
    """Whether the mean of a * left - b * whole differs from zero."""
    squares = statistics.Products(
      *(a * a * p - 2.0 * a * b * q + b * b * r for p, q, r in zip(*parts, strict=True))
    )
    spread = statistics.variance(squares, left.shape, trained=trained)
    chance = (1.0 - statistics.LEVEL) / comparisons  # Bonferroni's inequality.
    return np.asarray(np.abs(a * kept - b * effect) > spread.reach(chance))

  if not rejected(0.0, np.ones(1))[0]:
    return None
  ratio, ends = kept / effect, []
  for way in (-1.0, 1.0):
    tried = np.concatenate([[0.0], 1e-6 * (1.0 + abs(ratio)) * 2.0 ** np.arange(50)])
    for _ in range(_REFINEMENTS):
      outside = rejected(1.0, ratio + way * tried)
      if not outside.any():
        return None
      first = int(outside.argmax())
      tried = np.linspace(tried[max(first - 1, 0)], tried[first], 65)
    ends.append(float(ratio + way * tried[-1]))
  return ends


def over_purifiers(
  found: Mapping[str, Survival], together: Mapping[str, Survival]
) -> dict[str, Any]:
  """Returns the worst case and the mean over the purifiers with a defined survival.

  The worst purifier is the minimum of noisy estimates, so its own interval would be too low too
  often. If the intervals of all purifiers hold together, the minimum lies between the lowest of
  their low ends and the lowest of their high ends.

  Args:
    found: survival by purifier, without "none".
    together: the same with intervals that hold together (`comparisons` of `survival`).

  Returns:
    "worst", its interval "worst_interval" and its purifier "worst_purifier", "mean", "kept_worst"
    (the smallest remaining effect, signed so that the effect without a purifier is positive), and
    counts: "judged" purifiers out of "purifiers_count". Values are None if no survival is defined.
  """
  values = {name: s.value for name, s in found.items() if s.value is not None}
  kept = [
    s.kept * np.sign(s.effect)
    for s in found.values()
    if s.value is not None and s.kept is not None and s.effect is not None
  ]
  worst = min(values, key=lambda name: values[name]) if values else None
  ends = [limits for name in values if (limits := together[name].interval) is not None]
  bounded = bool(ends) and len(ends) == len(values)
  return {
    "worst": None if worst is None else values[worst],
    "worst_interval": [min(end) for end in zip(*ends)] if bounded else None,
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
  trained: bool,
  groups: np.ndarray | None = None,
) -> list[dict[str, Any]]:
  """Returns the survival of every row after every purifier, for one metric.

  Args:
    values: (row, purifier) -> (seeds, pictures); cells that were not measured are missing.
    rows: names of protections, without the clean row.
    purifiers: names of purifiers, without the identity.
    clean: name of the row of unprotected pictures.
    none: name of the purifier that does nothing.
    trained: whether a model was trained for every seed.
    groups: (pictures,), groups of pictures that share content, as for `statistics.estimate`.

  Returns:
    One entry per row: "row", "effect", "noise", "reason", "purifiers" {name: {"value", "interval",
    "kept", "reason"}}, and the fields of `over_purifiers`. Survival is defined for rows whose
    effect passes Holm's correction over all rows too.
  """

  def of(row: str, purifier: str, comparisons: int = 1) -> Survival:
    places = ((row, purifier), (clean, purifier), (row, none), (clean, none))
    cells = [values.get(place) for place in places]
    found = survival(*cells, trained=trained, comparisons=comparisons, groups=groups)
    if row in unclear and not found.reason:
      return found._replace(value=None, interval=None, reason=NO_EFFECT)
    return found

  unclear: set[str] = set()
  corrected = statistics.holm([of(row, none).p for row in rows])
  level = 1.0 - statistics.LEVEL
  unclear |= {row for row, p in zip(rows, corrected, strict=True) if p is not None and p >= level}
  lines = []
  for row in rows:
    found = {purifier: of(row, purifier) for purifier in purifiers}
    judged = max(1, sum(s.value is not None for s in found.values()))
    together = found
    if judged > 1:
      together = {purifier: of(row, purifier, judged) for purifier in purifiers}
    # Survival without a purifier is 1 by definition; it supplies the effect and its noise.
    alone = of(row, none)
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
        **over_purifiers(found, together),
      }
    )
  return lines
