"""Set distances against SciPy, closed forms and brute force."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance

from udp_jax.ops import frechet


def _features(count, dim, seed, *, shift=0.0, scale=1.0):
  generator = np.random.default_rng(seed)
  mixing = np.random.default_rng(99).normal(size=(dim, dim)) / dim**0.5
  return shift + scale * generator.normal(size=(count, dim)) @ mixing


def _statistics(features):
  return frechet.update(frechet.empty(features.shape[1]), features)


def _exact(mean, cov, count=1_000_001):
  return frechet.FeatureStatistics(count, np.asarray(mean, float), np.asarray(cov) * (count - 1))


def _sqrtm_distance(x, y):
  cov_x, cov_y = np.cov(x.T), np.cov(y.T)
  root = scipy.linalg.sqrtm(cov_x @ cov_y)
  shift = x.mean(0) - y.mean(0)
  return shift @ shift + np.trace(cov_x) + np.trace(cov_y) - 2 * np.trace(np.real(root))


def test_statistics_match_numpy_in_any_grouping():
  features = _features(101, 7, 0, shift=1e6)
  pieces = np.split(features, [1, 30, 31, 90])
  running = frechet.empty(7)
  for piece in pieces:
    running = frechet.update(running, piece)
  tree = frechet.merge(
    frechet.merge(_statistics(pieces[4]), _statistics(pieces[0])),
    frechet.merge(
      frechet.merge(_statistics(pieces[2]), frechet.empty(7)),
      frechet.merge(_statistics(pieces[1]), _statistics(pieces[3])),
    ),
  )
  for got in (running, tree, _statistics(features)):
    assert got.count == 101
    np.testing.assert_allclose(got.mean, features.mean(0), rtol=1e-13)
    # A mean of 1e6 with unit spread: the textbook sum of squares would lose all but 4 digits.
    np.testing.assert_allclose(frechet.covariance(got), np.cov(features.T), rtol=1e-8, atol=1e-9)


def test_update_returns_new_statistics_and_takes_jax_arrays():
  start = frechet.empty(3)
  after = frechet.update(start, jnp.ones((2, 3)))
  assert start.count == 0 and not start.mean.any()
  assert after.count == 2 and after.mean.dtype == np.float64
  assert frechet.update(after, np.zeros((0, 3))) is after


def test_frechet_of_diagonal_gaussians():
  # For commuting covariances: |m1 - m2|^2 + sum (s1 - s2)^2 over standard deviations.
  generator = np.random.default_rng(1)
  mean_a, mean_b = generator.normal(size=(2, 50))
  std_a, std_b = generator.uniform(1e-4, 3.0, size=(2, 50))
  expected = ((mean_a - mean_b) ** 2).sum() + ((std_a - std_b) ** 2).sum()
  # In a rotated basis the closed form holds unchanged, but nothing is diagonal any more.
  rotation, _ = np.linalg.qr(generator.normal(size=(50, 50)))
  for basis in (np.eye(50), rotation):
    a = _exact(basis @ mean_a, basis @ np.diag(std_a**2) @ basis.T)
    b = _exact(basis @ mean_b, basis @ np.diag(std_b**2) @ basis.T)
    np.testing.assert_allclose(frechet.frechet_distance(a, b), expected, rtol=1e-10)


def test_frechet_matches_sqrtm():
  x, y = _features(300, 40, 2), _features(200, 40, 3, shift=0.2, scale=1.3)
  a, b = _statistics(x), _statistics(y)
  expected = _sqrtm_distance(x, y)
  np.testing.assert_allclose(frechet.frechet_distance(a, b), expected, rtol=1e-8)
  np.testing.assert_allclose(frechet.frechet_distance(b, a), expected, rtol=1e-8)


def test_frechet_with_fewer_vectors_than_dimensions():
  # Rotate a problem of full rank in 10 dimensions into 200: the distance cannot change.
  x, y = _features(60, 10, 4), _features(50, 10, 5, shift=0.5, scale=0.7)
  basis, _ = np.linalg.qr(np.random.default_rng(6).normal(size=(200, 10)))
  got = frechet.frechet_distance(_statistics(x @ basis.T), _statistics(y @ basis.T))
  np.testing.assert_allclose(got, _sqrtm_distance(x, y), rtol=1e-9)


@pytest.mark.parametrize("fall", [1.0, 0.5])
def test_frechet_of_few_vectors_from_the_vectors_themselves(fall):
  """Deviations / sqrt(N - 1) are a factor of the covariance; `fall` makes it ill-conditioned."""
  x, y = (_features(n, 200, seed) * fall ** np.arange(200) for n, seed in ((30, 4), (20, 5)))
  p, q = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
  overlap = np.linalg.svd(p @ q.T, compute_uv=False).sum()
  shift = ((x.mean(0) - y.mean(0)) ** 2).sum()
  expected = shift + (p * p).sum() + (q * q).sum() - 2 * overlap
  got = frechet.frechet_distance(_statistics(x), _statistics(y))
  np.testing.assert_allclose(got, expected, rtol=1e-7)


def test_frechet_of_a_set_with_itself_is_zero_even_when_singular():
  for count in (20, 500):
    statistics = _statistics(_features(count, 100, 7))
    trace = np.trace(frechet.covariance(statistics))
    assert frechet.frechet_distance(statistics, statistics) <= 1e-10 * trace


def test_frechet_of_constant_sets_is_the_distance_of_means():
  a, b = _statistics(np.zeros((5, 4))), _statistics(np.full((5, 4), 2.0))
  np.testing.assert_allclose(frechet.frechet_distance(a, b), 16.0)


def _brute_precision(real, fake, k):
  between_real = scipy.spatial.distance.cdist(real, real)
  radii = np.sort(between_real, axis=1)[:, k]
  return np.mean(np.any(scipy.spatial.distance.cdist(fake, real) <= radii, axis=1))


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("block_size", [7, 1024])
def test_precision_recall_match_brute_force(k, block_size):
  real, fake = _features(90, 5, 8), _features(70, 5, 9, shift=0.4, scale=0.8)
  got = frechet.precision_recall(real, fake, k=k, block_size=block_size)
  assert 0.0 < got.recall < 1.0
  np.testing.assert_allclose(got.precision, _brute_precision(real, fake, k))
  np.testing.assert_allclose(got.recall, _brute_precision(fake, real, k))


def test_precision_recall_extremes():
  real = _features(80, 6, 10)
  assert frechet.precision_recall(real, real.copy()) == (1.0, 1.0)
  assert frechet.precision_recall(real, real + 1e3) == (0.0, 0.0)
  # Balls of radius zero around duplicated vectors hold those vectors, whatever rounding does; a
  # last block of one row goes through another BLAS routine, which rounds differently.
  wide = _features(80, 300, 21, shift=3.0)
  twice = np.repeat(wide, 2, axis=0)
  assert frechet.precision_recall(twice, wide, k=1, block_size=79).precision == 1.0
  # Collapsed to one real vector: every sample is realistic, next to nothing is covered.
  collapsed = frechet.precision_recall(real, np.repeat(real[:1], 80, axis=0))
  assert collapsed == (1.0, 1 / 80)


def _brute_mmd(x, y):
  kernel = lambda a, b: (np.dot(a, b) / x.shape[1] + 1) ** 3
  xx = np.mean([kernel(a, b) for a, b in itertools.permutations(x, 2)])
  yy = np.mean([kernel(a, b) for a, b in itertools.permutations(y, 2)])
  xy = np.mean([kernel(a, b) for a, b in itertools.product(x, y)])
  return xx + yy - 2 * xy


@pytest.mark.parametrize("block_size", [5, 1024])
def test_mmd_averages_to_the_brute_force_statistic(block_size):
  # The mean over all subsets is the U-statistic of the full sets; over many, nearly so.
  x, y = _features(24, 4, 11), _features(20, 4, 12, shift=0.8)
  got = frechet.polynomial_mmd(x, y, num_subsets=20_000, subset_size=10, block_size=block_size)
  np.testing.assert_allclose(got.mean, _brute_mmd(x, y), rtol=0.02)


def test_mmd_of_single_subsets_matches_brute_force():
  # Leaving one vector out of each set, the possible subsets can be listed.
  x, y = _features(5, 3, 13), _features(5, 3, 14, shift=0.5)
  values = [_brute_mmd(np.delete(x, i, 0), np.delete(y, j, 0)) for i in range(5) for j in range(5)]
  got = frechet.polynomial_mmd(x, y, num_subsets=5000, subset_size=4)
  np.testing.assert_allclose(got.mean, np.mean(values), rtol=0.02)
  expected = np.std(values) * (4 / (5 - 4) + 1 / 5000) ** 0.5
  np.testing.assert_allclose(got.standard_error, expected, rtol=0.05)


def test_mmd_is_unbiased_and_its_standard_error_is_honest():
  # Repeat the experiment: the spread of the estimates is what the standard error claims.
  def spread(shift):
    runs = [
      frechet.polynomial_mmd(
        _features(100, 4, 1000 + 2 * i),
        _features(100, 4, 1001 + 2 * i, shift=shift),
        num_subsets=30,
      )
      for i in range(120)
    ]
    means = np.array([run.mean for run in runs])
    claimed = np.sqrt(np.mean([run.standard_error**2 for run in runs]))
    return means, claimed

  means, claimed = spread(0.0)
  assert abs(means.mean()) < 4 * means.std() / 120**0.5
  # For equal distributions the jackknife is known to err on the cautious side.
  assert 0.9 < claimed / means.std() < 3.0
  means, claimed = spread(0.6)
  assert 0.75 < claimed / means.std() < 1.35


def test_mmd_is_decided_by_its_seed():
  x, y = _features(40, 4, 15), _features(40, 4, 16)
  first = frechet.polynomial_mmd(x, y, seed=1)
  assert first == frechet.polynomial_mmd(x, y, seed=1)
  assert first != frechet.polynomial_mmd(x, y, seed=2)


def test_mmd_reduces_large_sets():
  x, y = _features(400, 4, 17), _features(300, 4, 18, shift=0.5)
  full = frechet.polynomial_mmd(x, y)
  reduced = frechet.polynomial_mmd(x, y, max_vectors=100)
  assert abs(reduced.mean - full.mean) < 4 * reduced.standard_error
  assert reduced.standard_error > full.standard_error


def test_bad_inputs_are_refused():
  good, other = _features(10, 4, 19), _features(10, 5, 20)
  broken = good.copy()
  broken[3, 1] = np.nan
  single = _statistics(good[:1])
  for call, message in [
    (lambda: frechet.update(frechet.empty(4), good[0]), "N, D"),
    (lambda: frechet.update(frechet.empty(4), broken), "NaN"),
    (lambda: frechet.update(frechet.empty(4), other), "dimensions"),
    (lambda: frechet.covariance(single), "at least 2"),
    (lambda: frechet.frechet_distance(single, _statistics(good)), "at least 2"),
    (lambda: frechet.frechet_distance(_statistics(good), _statistics(other)), "dimensions"),
    (lambda: frechet.precision_recall(good, other), "dimensions"),
    (lambda: frechet.precision_recall(good, broken), "fake features contain NaN"),
    (lambda: frechet.precision_recall(good, good, k=10), "k=10"),
    (lambda: frechet.polynomial_mmd(good, good[:3], subset_size=3), "subset_size"),
    (lambda: frechet.polynomial_mmd(good, good, num_subsets=1), "num_subsets"),
  ]:
    with pytest.raises(ValueError, match=message):
      call()
