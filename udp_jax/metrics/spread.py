"""How far a mean over pictures can be trusted: standard deviations and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

LEVEL = 0.95


def resamples(count: int, *, draws: int, seed: int) -> np.ndarray:
  """(draws, count) picture numbers drawn with replacement: the same for all that is compared."""
  return np.random.default_rng(seed).integers(0, count, (draws, count))


def interval(statistic: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> list[float] | None:
  """The percentile bootstrap interval [low, high] at `LEVEL` of a statistic over pictures.

  Args:
    statistic: picture numbers (draws, count) -> (draws,).
    rows: of `resamples`.

  Returns:
    None where a resample has no finite value, or there is a single picture.
  """
  if rows.shape[1] < 2:
    return None
  values = statistic(rows)
  if not np.isfinite(values).all():
    return None
  tail = 50.0 * (1.0 - LEVEL)
  low, high = np.percentile(values, [tail, 100.0 - tail])
  return [float(low), float(high)]


def summarise(values: np.ndarray, *, draws: int, seed: int) -> dict[str, Any]:
  """Mean, spread over pictures and over seeds, and the interval of the mean.

  Args:
    values: (seeds, pictures); NaN for what has no value.
    draws: bootstrap resamples.
    seed: of the resamples.

  Returns:
    "mean"; "std" over pictures (of each one's mean over seeds); "seed_std" of the seeds' means,
    None for a single seed; "interval" at `LEVEL`; "count" of pictures with a value. None for what
    cannot be told.
  """
  known = np.isfinite(values).all(axis=0)
  kept = values[:, known]
  count = kept.shape[1]
  if not count:
    return {"mean": None, "std": None, "seed_std": None, "interval": None, "count": 0}
  each = kept.mean(axis=0)
  rows = resamples(count, draws=draws, seed=seed)
  return {
    "mean": float(each.mean()),
    "std": float(each.std(ddof=1)) if count > 1 else None,
    "seed_std": float(kept.mean(axis=1).std(ddof=1)) if len(kept) > 1 else None,
    "interval": interval(lambda r: each[r].mean(axis=1), rows),
    "count": count,
  }
