"""Uncertainty of means over pictures: standard deviations and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

LEVEL = 0.95


def resamples(count: int, *, draws: int, seed: int) -> np.ndarray:
  """Draws (draws, count) picture indices with replacement; equal seeds make means comparable."""
  return np.random.default_rng(seed).integers(0, count, (draws, count))


def interval(statistic: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> list[float] | None:
  """Returns the percentile bootstrap interval [low, high] of a statistic over pictures at `LEVEL`.

  Args:
    statistic: picture indices (draws, count) -> (draws,).
    rows: (draws, count) picture indices, from `resamples`.

  Returns:
    The interval; None if a resample has no finite value, or there is only one picture.
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
  """Returns the mean, its spread over pictures and seeds, and its interval.

  Args:
    values: (seeds, pictures); NaN for missing values.
    draws: number of bootstrap resamples.
    seed: seed of the resamples.

  Returns:
    "mean"; "std" over pictures (of each picture's mean over seeds); "seed_std" of the seeds' means,
    None for a single seed; "interval" at `LEVEL`; "count" of pictures with a value. Undefined
    entries are None.
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


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
  """Mean and standard deviation over seeds of the finite values; None for too few values."""
  finite = [float(v) for v in values if np.isfinite(v)]
  mean = float(np.mean(finite)) if finite else None
  std = float(np.std(finite, ddof=1)) if len(finite) > 1 else None
  return {"mean": mean, "std": std, "values": [float(v) for v in values]}
