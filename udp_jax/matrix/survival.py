"""Survival: how much of a protection's effect is left after a purifier.

For a metric m, a protection p and a purifier q,

  survival(p, q) = (m(p, q) - m(clean, q)) / (m(p, none) - m(clean, none))

where m(p, q) is measured on pictures that were protected by p and purified by q. The purifier's own
effect on clean pictures is taken out of the numerator: what blurs everything does not count as
protection. 1 is all of the effect, 0 is none, below 0 the reverse. It does not matter whether the
metric grows or falls with the effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from udp_jax.metrics import spread

FORMULA = "(m(protected, purified) - m(clean, purified)) / (m(protected, none) - m(clean, none))"
# An effect within so many standard errors of zero is no effect: nothing can survive of it.
NOISE = 2.0

NO_EFFECT = "no effect to survive: within the noise of zero without a purifier"
NOT_MEASURED = "not measured"


class Survival(NamedTuple):
  """How much of one effect is left.

  Attributes:
    value: the ratio; None where it is undefined.
    interval: its bootstrap interval over pictures, [low, high]; None where it cannot be told.
    kept: the numerator: the effect that is left, in units of the metric; None if not measured.
    effect: the denominator: the effect without a purifier.
    noise: standard error of `effect`.
    reason: why the ratio is undefined; "" where it is not.
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
  """The survival of one effect after one purifier.

  The four cells hold the same pictures (or samples of the same keys) in the same order, so that
  differences are taken picture by picture. The effect counts as none where its mean is within
  `NOISE` standard errors of zero; the standard error is the larger of that over pictures and that
  over seeds.

  Args:
    protected_purified: (seeds, pictures), of the protected pictures after the purifier; NaN for
      pictures without a value, None if the cell was not measured.
    clean_purified: the same of the clean pictures after the purifier.
    protected: the same of the protected pictures as they are.
    clean: the same of the clean pictures as they are.
    draws: bootstrap resamples.
    seed: of the resamples.
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

  rows = spread.resamples(len(left_each), draws=draws, seed=seed)
  return Survival(kept / effect, spread.interval(ratio, rows), kept, effect, noise, "")


def _standard_error(whole: np.ndarray) -> float | None:
  """Of the mean of (seeds, pictures); None where neither pictures nor seeds tell any spread."""
  seeds, count = whole.shape
  found = []
  if count > 1:
    found.append(float(whole.mean(axis=0).std(ddof=1)) / count**0.5)
  if seeds > 1:
    found.append(float(whole.mean(axis=1).std(ddof=1)) / seeds**0.5)
  # Equal differences everywhere are an effect, but rounding alone is none.
  return max(*found, 1e-12) if found else None


def over_purifiers(found: Mapping[str, Survival]) -> dict[str, Any]:
  """Worst case and mean over the purifiers that could be judged.

  Args:
    found: by purifier, without "none".

  Returns:
    "worst" and the purifier "worst_purifier", "mean", "kept_worst" (the smallest effect that is
    left, signed so that the effect without a purifier is positive), "judged" of "purifiers_count"
    (how many). None where nothing could be judged.
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
  """Survival of every row after every purifier, for one metric.

  Args:
    values: (row, purifier) -> (seeds, pictures); cells that were not measured are missing.
    rows: protections, without the clean row.
    purifiers: without the one that does nothing.
    clean: the row of unprotected pictures.
    none: the purifier that does nothing.
    draws: bootstrap resamples.
    seed: of the resamples.

  Returns:
    One entry a row: "row", "effect", "noise", "reason", "purifiers" {name: {"value", "interval",
    "kept", "reason"}}, and what `over_purifiers` says.
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
    # Its own purifier-free survival is 1 by definition, and tells what the effect is.
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
