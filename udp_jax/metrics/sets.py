"""Compares samples of a model with real pictures by network features: one value per sample."""

from __future__ import annotations

import numpy as np

from udp_jax.metrics.visibility import Metrics
from udp_jax.ops import frechet

# With fewer pictures, the value would depend more on the count than on the pictures.
MIN_FRECHET = 256
NEIGHBOUR = 3
# Metrics that depend on how many pictures there are, and the name of that number in records.
COUNTED = ("fd", "mmd", "precision", "recall")
COUNT = "compared"


def equal(real: np.ndarray, fake: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Draws a subset of the larger set without replacement, so that both have the smaller's count.

  Args:
    real: (N, D).
    fake: (M, D).
    seed: seed of the subset, which is the same for every set of that count; in the old order.
  """
  count = min(len(real), len(fake))

  def some(features: np.ndarray) -> np.ndarray:
    if len(features) == count:
      return features
    chosen = np.random.default_rng(seed).choice(len(features), count, replace=False)
    return features[np.sort(chosen)]

  return some(real), some(fake)


def nearest(features: np.ndarray, real: np.ndarray) -> np.ndarray:
  """Returns Euclidean distances (N,) from features (N, D) to the nearest of `real` (M, D)."""
  return np.asarray(np.sqrt(_squared_distances(features, real).min(axis=1)))


def precision_flags(real: np.ndarray, fake: np.ndarray, *, k: int = NEIGHBOUR) -> np.ndarray:
  """Returns 1 for each of `fake` inside a ball around one of `real`, else 0; (M,).

  A ball reaches to its centre's k-th nearest neighbour (Kynkaanniemi et al. 2019). The mean is
  improved precision, or recall with the roles exchanged. NaN if `real` has at most k entries.
  """
  if len(real) <= k:
    return np.full(len(fake), np.nan)
  # A picture's nearest neighbour is itself, at distance 0.
  radii = np.partition(_squared_distances(real, real), k, axis=1)[:, k]
  # Distances are differences of squares, so equal vectors may differ by a rounding error.
  slack = 1e-9 * float(radii.max())
  inside = _squared_distances(fake, real) <= radii + slack
  return np.asarray(inside.any(axis=1), np.float64)


def distances(real: np.ndarray, fake: np.ndarray, *, seed: int = 0) -> dict[str, float]:
  """Frechet distance "fd" and polynomial "mmd" of two sets; {} if one is below `MIN_FRECHET`."""
  if min(len(real), len(fake)) < MIN_FRECHET:
    return {}
  found = distribution_metrics(real, fake, seed=seed)
  return {name: found[name] for name in ("fd", "mmd")}


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Runs `frechet.squared_distances` on vectors centred on the mean of `b`."""
  centre = b.mean(axis=0, dtype=np.float64)
  return frechet.squared_distances(a - centre, b - centre)


def distribution_metrics(real: np.ndarray, generated: np.ndarray, *, seed: int = 0) -> Metrics:
  """Measures the distance of as many generated pictures as real ones, in feature space.

  Args:
    real: (N, D), features of held-out clean pictures.
    generated: (M, D), features of samples.
    seed: seed of the subset of the larger set (`equal`), and of the MMD's subsets.

  Returns:
    `fd` (Frechet distance, Heusel et al. 2017), `precision` and `recall` (Kynkaanniemi et al. 2019,
    k = 3), `mmd` and `mmd_se` (polynomial kernel, Binkowski et al. 2018), and `compared`, the
    number of pictures of either kind.
  """
  real, generated = equal(real, generated, seed=seed)
  distance = frechet.frechet_distance(statistics(real), statistics(generated))
  precision, recall = frechet.precision_recall(real, generated)
  mmd = frechet.polynomial_mmd(real, generated, seed=seed)
  values = {"fd": distance, "precision": precision, "recall": recall, "mmd": mmd.mean}
  values[COUNT] = len(real)
  return {k: float(v) for k, v in values.items()} | {"mmd_se": float(mmd.standard_error)}


def statistics(features: np.ndarray) -> frechet.FeatureStatistics:
  """Returns the mean and scatter of features (N, D)."""
  return frechet.update(frechet.empty(features.shape[1]), features)
