"""Distances between sets of feature vectors: Frechet distance, precision and recall, kernel MMD.

All functions use NumPy in float64 on the host: the matrices are small, accelerators lack float64,
and float32 covariances lose the digits that matter for a Frechet distance. Features are (N, D)
arrays of any float type, NumPy or JAX.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class FeatureStatistics(NamedTuple):
  """Mean and scatter of a set of feature vectors, mergeable across batches, files and processes.

  Attributes:
    count: number of vectors.
    mean: (D,) float64.
    m2: (D, D) float64, the sum of outer products of deviations from the mean.
  """

  count: int  # type: ignore[assignment]  # hides the unused method tuple.count
  mean: np.ndarray
  m2: np.ndarray


class PrecisionRecall(NamedTuple):
  """Improved precision and recall, both in [0, 1]."""

  precision: float
  recall: float


class Estimate(NamedTuple):
  """An estimated value with its standard error."""

  mean: float
  standard_error: float


def _as_features(features: ArrayLike, name: str = "features") -> np.ndarray:
  array = np.asarray(features, np.float64)
  if array.ndim != 2:
    raise ValueError(f"{name} must be (N, D), got shape {array.shape}")
  if not np.all(np.isfinite(array)):
    raise ValueError(f"{name} contain NaN or infinite values")
  return array


def _as_pair(a: ArrayLike, b: ArrayLike, name_a: str, name_b: str) -> tuple[np.ndarray, np.ndarray]:
  """Checks two sets of feature vectors of equal dimension and converts them to float64."""
  first, second = _as_features(a, name_a), _as_features(b, name_b)
  if first.shape[1] != second.shape[1]:
    raise ValueError(f"{name_a} have {first.shape[1]} dimensions, {name_b} have {second.shape[1]}")
  return first, second


def empty(dim: int) -> FeatureStatistics:
  """Returns the statistics of an empty set of `dim`-dimensional vectors.

  >>> empty(8).mean.shape
  (8,)
  """
  return FeatureStatistics(0, np.zeros(dim), np.zeros((dim, dim)))


def update(statistics: FeatureStatistics, features: ArrayLike) -> FeatureStatistics:
  """Adds a batch of features (N, D) and returns the new statistics.

  Raises:
    ValueError: the features are not (N, D) with the same D, or not finite.

  >>> found = update(empty(2), np.array([[0.0, 0.0], [2.0, 4.0]]))
  >>> found.count, found.mean.tolist()
  (2, [1.0, 2.0])
  """
  batch = _as_features(features)
  if batch.shape[0] == 0:
    return statistics
  mean = batch.mean(axis=0)
  deviations = batch - mean
  return merge(statistics, FeatureStatistics(batch.shape[0], mean, deviations.T @ deviations))


def merge(a: FeatureStatistics, b: FeatureStatistics) -> FeatureStatistics:
  """Merges the statistics of two sets (Chan, Golub & LeVeque 1983); associative up to rounding.

  Raises:
    ValueError: the dimensions differ.

  >>> one = update(empty(1), np.array([[0.0]]))
  >>> merge(one, update(empty(1), np.array([[2.0]]))).mean.tolist()
  [1.0]
  """
  if a.mean.shape != b.mean.shape:
    raise ValueError(
      f"cannot merge statistics of {a.mean.shape[0]} and {b.mean.shape[0]} dimensions"
    )
  if a.count == 0:
    return b
  if b.count == 0:
    return a
  count = a.count + b.count
  shift = b.mean - a.mean
  mean = a.mean + shift * (b.count / count)
  m2 = a.m2 + b.m2 + np.outer(shift, shift) * (a.count * b.count / count)
  return FeatureStatistics(count, mean, m2)


def covariance(statistics: FeatureStatistics) -> np.ndarray:
  """Returns the unbiased sample covariance (D, D).

  Raises:
    ValueError: there are fewer than two vectors.

  >>> covariance(update(empty(1), np.array([[0.0], [2.0]]))).tolist()
  [[2.0]]
  """
  if statistics.count < 2:
    raise ValueError(f"a covariance needs at least 2 feature vectors, got {statistics.count}")
  return statistics.m2 / (statistics.count - 1)


def _factor(statistics: FeatureStatistics) -> np.ndarray:
  """Returns L, (D, rank), with L L^T = covariance; directions within rounding error are dropped."""
  matrix = covariance(statistics)
  matrix = 0.5 * (matrix + matrix.T)
  rank, dim = statistics.count - 1, matrix.shape[0]
  if 2 * rank < dim:
    return _low_rank_factor(matrix, rank)
  values, vectors = np.linalg.eigh(matrix)
  kept = values > dim * np.finfo(np.float64).eps * max(values[-1], 0.0)
  return vectors[:, kept] * np.sqrt(values[kept])


def _low_rank_factor(matrix: np.ndarray, rank: int) -> np.ndarray:
  """Computes `_factor` by pivoted Cholesky decomposition (Higham 1990) in D rank^2 operations.

  An eigendecomposition takes D^3 operations: a second for 1,280 features of eight pictures.
  """
  dim = matrix.shape[0]
  left = matrix.diagonal().copy()
  tolerance = dim * np.finfo(np.float64).eps * left.max(initial=0.0)
  factor = np.zeros((dim, rank))
  for i in range(rank):
    pivot = int(np.argmax(left))
    if left[pivot] <= tolerance:
      return factor[:, :i]
    column = (matrix[:, pivot] - factor[:, :i] @ factor[pivot, :i]) / np.sqrt(left[pivot])
    factor[:, i] = column
    left -= column * column
    left[pivot] = 0.0
  return factor


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
  """Squared Frechet distance between Gaussians fitted to two sets (Heusel et al. 2017).

  |mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr((A^1/2 B A^1/2)^1/2). With factors A = P P^T and
  B = Q Q^T from symmetric decompositions, the last trace is the sum of the singular values of
  P^T Q. No root is taken of values that may be rounding noise, so singular covariances (fewer
  vectors than dimensions) lose no accuracy. Small sets bias it upwards: compare equal counts.

  Raises:
    ValueError: the dimensions differ, or a set has fewer than two vectors.

  >>> features = np.random.default_rng(0).normal(size=(50, 3))
  >>> one, moved = update(empty(3), features), update(empty(3), features + 2.0)
  >>> round(frechet_distance(one, moved), 6)  # 2 * 2 in each of 3 dimensions.
  12.0
  """
  if a.mean.shape != b.mean.shape:
    raise ValueError(
      f"cannot compare features of {a.mean.shape[0]} and {b.mean.shape[0]} dimensions"
    )
  product = _factor(a).T @ _factor(b)
  overlap = np.linalg.svd(product, compute_uv=False).sum() if product.size else 0.0
  shift = a.mean - b.mean
  traces = np.trace(covariance(a)) + np.trace(covariance(b))
  distance = shift @ shift + traces - 2.0 * overlap
  # For equal sets, rounding may give a value slightly below zero.
  return max(float(distance), 0.0)


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Squared Euclidean distances (N, M) between vectors (N, D) and (M, D).

  The formula subtracts squares and loses digits far from the origin: centre both sets first.

  >>> squared_distances(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0], [0.0, 1.0]])).tolist()
  [[25.0, 1.0]]
  """
  squares = np.sum(a * a, axis=1)[:, None] + np.sum(b * b, axis=1)[None, :]
  return np.maximum(squares - 2.0 * (a @ b.T), 0.0)


def _kth_neighbour(points: np.ndarray, k: int, block_size: int) -> np.ndarray:
  """Returns the squared distance (N,) from each point to its k-th nearest other point."""
  out = np.empty(points.shape[0])
  for start in range(0, points.shape[0], block_size):
    rows = np.arange(start, min(start + block_size, points.shape[0]))
    distances = squared_distances(points[rows], points)
    distances[np.arange(rows.size), rows] = np.inf
    out[rows] = np.partition(distances, k - 1, axis=1)[:, k - 1]
  return out


def _fraction_inside(
  points: np.ndarray, centres: np.ndarray, squared_radii: np.ndarray, block_size: int
) -> float:
  inside = 0
  # Distances are differences of squares, so equal vectors may differ by a rounding error.
  slack = 1e-12 * float(np.max(np.sum(centres * centres, axis=1), initial=0.0))
  for start in range(0, points.shape[0], block_size):
    distances = squared_distances(points[start : start + block_size], centres)
    inside += int(np.count_nonzero(np.any(distances <= squared_radii + slack, axis=1)))
  return inside / points.shape[0]


def precision_recall(
  real: ArrayLike, fake: ArrayLike, *, k: int = 3, block_size: int = 1024
) -> PrecisionRecall:
  """Improved precision and recall (Kynkaanniemi et al. 2019).

  Precision is the fraction of `fake` inside the union of balls around `real`; each ball reaches to
  its centre's k-th nearest neighbour. Recall is the same with the roles exchanged.

  Args:
    real: (N, D) features.
    fake: (M, D) features. Compare at equal N and M: both numbers depend on the counts.
    k: index of the neighbour that sets the radius, smaller than N and M.
    block_size: rows of the distance matrix held at once; affects memory, not results.

  Raises:
    ValueError: a set has at most k vectors, shapes do not fit, or values are not finite.

  >>> real = np.random.default_rng(0).normal(size=(50, 3))
  >>> precision_recall(real, real)
  PrecisionRecall(precision=1.0, recall=1.0)
  """
  real64, fake64 = _as_pair(real, fake, "real features", "fake features")
  smallest = min(real64.shape[0], fake64.shape[0])
  if not 1 <= k < smallest:
    raise ValueError(f"k={k} must be at least 1 and below the size of both sets ({smallest})")
  centre = real64.mean(axis=0)
  real64, fake64 = real64 - centre, fake64 - centre
  precision = _fraction_inside(fake64, real64, _kth_neighbour(real64, k, block_size), block_size)
  recall = _fraction_inside(real64, fake64, _kth_neighbour(fake64, k, block_size), block_size)
  return PrecisionRecall(precision, recall)


def _subset_sums(
  a: np.ndarray, b: np.ndarray, in_a: np.ndarray, in_b: np.ndarray, same: bool, block_size: int
) -> np.ndarray:
  """Returns (J,) kernel sums over pairs of each subset; `in_*` are (N, J) 0/1 memberships."""
  sums = np.zeros(in_a.shape[1])
  for start in range(0, a.shape[0], block_size):
    rows = slice(start, start + block_size)
    kernel = (a[rows] @ b.T / a.shape[1] + 1.0) ** 3
    if same:
      local = np.arange(kernel.shape[0])
      kernel[local, start + local] = 0.0
    sums += np.sum(in_a[rows] * (kernel @ in_b), axis=0)
  return sums


def polynomial_mmd(
  x: ArrayLike,
  y: ArrayLike,
  *,
  num_subsets: int = 100,
  subset_size: int | None = None,
  seed: int = 0,
  max_vectors: int = 10_000,
  block_size: int = 1024,
) -> Estimate:
  """Kernel inception distance: unbiased squared MMD, kernel (x . y / D + 1)^3 (Binkowski 2018).

  Returns the mean over random subsets, with a standard error that accounts for shared vectors: with
  S^2 the variance between J subsets of size s out of n vectors, it is
  sqrt(S^2 (s / (n - s) + 1 / J)), the delete-d jackknife (Shao & Wu 1989) plus the draw of the
  subsets. The usual S / sqrt(J) would vanish with growing J, whatever the amount of data.

  Args:
    x: (N, D) features.
    y: (M, D) features.
    num_subsets: J, the number of subsets, at least 2.
    subset_size: s, at least 2 and below N and M; None means half the smaller set, at most 1000.
    seed: seed of the subsets.
    max_vectors: larger sets are first reduced to this many random vectors.
    block_size: rows of the kernel matrix held at once; affects memory, not results.

  Returns:
    The estimate (unbiased, so possibly slightly negative) and its standard error.

  Raises:
    ValueError: counts or shapes do not fit, or values are not finite.

  >>> x, y = np.random.default_rng(0).normal(size=(2, 60, 3))
  >>> estimate = polynomial_mmd(x, y)
  >>> abs(estimate.mean) < 3 * estimate.standard_error
  True
  >>> polynomial_mmd(x, y + 1).mean > 0.5
  True
  """
  x64, y64 = _as_pair(x, y, "x", "y")
  generator = np.random.default_rng(seed)
  x64, y64 = (
    v if v.shape[0] <= max_vectors else v[generator.permutation(v.shape[0])[:max_vectors]]
    for v in (x64, y64)
  )
  smallest = min(x64.shape[0], y64.shape[0])
  size = min(1000, smallest // 2) if subset_size is None else subset_size
  if not 2 <= size < smallest:
    raise ValueError(f"subset_size={size} must be at least 2 and below both counts ({smallest})")
  if num_subsets < 2:
    raise ValueError(f"num_subsets must be at least 2, got {num_subsets}")

  def memberships(count: int) -> np.ndarray:
    chosen = np.zeros((count, num_subsets))
    for j in range(num_subsets):
      chosen[generator.choice(count, size, replace=False), j] = 1.0
    return chosen

  in_x, in_y = memberships(x64.shape[0]), memberships(y64.shape[0])
  within_x = _subset_sums(x64, x64, in_x, in_x, True, block_size)
  within_y = _subset_sums(y64, y64, in_y, in_y, True, block_size)
  between = _subset_sums(x64, y64, in_x, in_y, False, block_size)
  estimates = (within_x + within_y) / (size * (size - 1)) - 2.0 * between / size**2
  variance = estimates.var(ddof=1) * (size / (smallest - size) + 1.0 / num_subsets)
  return Estimate(float(estimates.mean()), float(np.sqrt(variance)))
