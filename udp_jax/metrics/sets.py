"""Samples of a model against real pictures, by features of a network: one number a sample."""

from __future__ import annotations

import numpy as np

from udp_jax import evaluation

# Below these counts a number would be that of the count more than of the pictures.
MIN_FRECHET = 256
NEIGHBOUR = 3


def nearest(features: np.ndarray, real: np.ndarray) -> np.ndarray:
  """Euclidean distance (N,) of features (N, D) to the nearest of `real` (M, D)."""
  return np.asarray(np.sqrt(_squared_distances(features, real).min(axis=1)))


def precision_flags(real: np.ndarray, fake: np.ndarray, *, k: int = NEIGHBOUR) -> np.ndarray:
  """1 for each of `fake` inside a ball around one of `real`, else 0; (M,).

  A ball reaches to its centre's k-th nearest neighbour (Kynkaanniemi et al. 2019). The mean is
  improved precision; with the roles exchanged it is recall. NaN where `real` has k or fewer.
  """
  if len(real) <= k:
    return np.full(len(fake), np.nan)
  # The nearest of a picture's neighbours is itself, at a distance of 0.
  radii = np.partition(_squared_distances(real, real), k, axis=1)[:, k]
  # Distances come from differences of squares: equal vectors may end up a rounding error apart.
  slack = 1e-9 * float(radii.max())
  inside = _squared_distances(fake, real) <= radii + slack
  return np.asarray(inside.any(axis=1), np.float64)


def distances(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
  """Frechet distance "fd" and polynomial "mmd" of feature sets; {} below `MIN_FRECHET` of each."""
  if min(len(real), len(fake)) < MIN_FRECHET:
    return {}
  found = evaluation.distribution_metrics(real, fake)
  return {name: found[name] for name in ("fd", "mmd")}


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  # Centred: differences of squares lose digits far from the origin.
  centre = b.mean(axis=0, dtype=np.float64)
  a, b = a - centre, b - centre
  squares = np.sum(a * a, axis=1)[:, None] + np.sum(b * b, axis=1)[None, :]
  return np.asarray(np.maximum(squares - 2.0 * (a @ b.T), 0.0))
