"""Intervals for means over two crossed random factors: seeds of trainings, and pictures.

All seeds measure the same pictures, so values are (seeds, pictures) and follow the two-way random
effects model without replication,

  value[s, p] = mean + seed[s] + picture[p] + rest[s, p]

whose mean has the variance (MS_seed + MS_picture - MS_rest) / (S P), from mean squares of an
analysis of variance. MS_seed has few degrees of freedom. Satterthwaite's approximation for the sum
then covers too rarely (92 % with three seeds), so the quantile of Student's t is Cochran's
(Biometrics 20, 1964), the mean of both factors' quantiles weighted by their parts of the variance,

  V_seed = max(MS_seed - MS_rest, 0) / (S P),   V_picture = MS_picture / (S P)
  reach = (V_seed t(S-1) + V_picture t(P-1)) / sqrt(V_seed + V_picture)

and the interval is never narrower than that over seeds alone, t(S-1) sqrt(MS_seed / (S P)). In
simulations (the tests) 95 % intervals cover in 94 to 97 % of cases from three seeds on, and in up
to 99 % if neither seeds nor pictures matter. The tests' bounds are wider, from 92 %, as they hold
for every mixture of the parts, and a simulated share has an error of its own. All this is so for
roughly normal values; skewed and bimodal ones undercover: log-normal pictures with 3, 4 and 6 seeds
are covered in 90, 88 and 85 % of cases with 3 pictures and in 95, 94 and 92 % with 30, log-normal
seeds in 84 %. Seeds that train nothing are repeated draws for the same pictures: values are
averaged over them, and pictures are the one random factor.

Pictures that share content (windows of one painting) are no independent draws. Where their groups
are known, values are averaged over each group first, groups count equally whatever their size, and
they take the place of pictures in all of the above. Values that do not differ at all tell nothing
of how far to trust their mean, so they have no interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

LEVEL = 0.95
# With fewer trainings there is no interval and no claim.
MIN_SEEDS = 3
# The same with fewer pictures, or groups of pictures.
MIN_PICTURES = 3
# Surrogates and random starts are draws too, but each protection is made once.
_ONE_RUN = "It speaks of this one run of each protection."
MEANING = (
  f"A {100 * LEVEL:g} % interval (Student's t) holds the mean over all pictures of this kind, and, "
  f"where models are trained, over all seeds too; that takes {MIN_SEEDS} seeds or more. {_ONE_RUN}"
)
# The same for models trained from scratch, whose measurements have one value a seed.
MEANING_OF_SEEDS = (
  f"A {100 * LEVEL:g} % interval (Student's t) holds the mean over all seeds of training on these "
  f"pictures; that takes {MIN_SEEDS} seeds or more. {_ONE_RUN}"
)
_ROUNDING = 1e-12
# A spread of this share of the mean is that of the last digits.
_RELATIVE_ROUNDING = 1e-9


class Products(NamedTuple):
  """Mean products of two measurements (mean squares of one), leaves (...).

  Attributes:
    seed: of the means of seeds, times the number of pictures.
    picture: of the means of pictures, times the number of seeds.
    rest: of what is left.
  """

  seed: np.ndarray
  picture: np.ndarray
  rest: np.ndarray


class Variance(NamedTuple):
  """What the mean of values (..., seeds, pictures) owes to each factor, leaves (...).

  Attributes:
    seed: variance of the mean that seeds add to that of pictures.
    picture: variance of the mean due to pictures.
    seed_alone: variance of the mean if only seeds mattered; a lower bound.
    freedom: degrees of freedom of seeds and of pictures.
  """

  seed: np.ndarray
  picture: np.ndarray
  seed_alone: np.ndarray
  freedom: tuple[int, int]

  @property
  def error(self) -> np.ndarray:
    """Standard error of the mean."""
    total = np.maximum(self.seed + self.picture, self.seed_alone)
    return np.maximum(np.sqrt(total), _ROUNDING)

  def reach(self, chance: ArrayLike = 1.0 - LEVEL) -> np.ndarray:
    """Returns by how much the mean is missed with the probability `chance`, (...)."""
    few, many = (-special.stdtrit(free, 0.5 * np.asarray(chance)) for free in self.freedom)
    total = np.maximum(self.seed + self.picture, np.finfo(float).tiny)
    both = (self.seed * few + self.picture * many) / np.sqrt(total)
    # The floor keeps rounding from counting as an effect where all values are equal.
    return np.maximum(np.maximum(both, np.sqrt(self.seed_alone) * few), _ROUNDING)


def meaning(groups: np.ndarray | None = None) -> str:
  """Returns `MEANING`, with a word on the groups (pictures,) of the pictures if they have any."""
  if groups is None:
    return MEANING
  return (
    f"{MEANING} The pictures come from {len(np.unique(groups))} groups (parts of one picture); "
    f"means are over groups, which count equally, and intervals of pictures take {MIN_PICTURES} "
    "groups or more."
  )


def by_group(values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
  """Averages values (..., seeds, pictures) over each group, (..., seeds, groups).

  Args:
    values: all finite.
    groups: (pictures,), the number of each picture's group; None leaves the values as they are.
  """
  if groups is None:
    return values
  _, place, counts = np.unique(groups, return_inverse=True, return_counts=True)
  members = place[:, None] == np.arange(len(counts))
  return np.asarray(values @ (members / counts))


def can_tell(shape: tuple[int, ...], *, trained: bool) -> bool:
  """Whether values (..., seeds, pictures) suffice for an interval.

  Args:
    shape: of the values.
    trained: whether a model was trained for every seed, so that seeds are a random factor.
  """
  seeds, pictures = shape[-2:]
  return pictures > 0 and (seeds >= MIN_SEEDS if trained else pictures >= MIN_PICTURES)


def products(x: np.ndarray, y: np.ndarray) -> Products:
  """Returns the mean products of two measurements (..., seeds, pictures).

  A factor with a single level has the product 0.
  """
  seeds, pictures = x.shape[-2:]
  x, y = (values - values.mean((-2, -1), keepdims=True) for values in (x, y))
  of_seeds = pictures * (x.mean(-1) * y.mean(-1)).sum(-1)
  of_pictures = seeds * (x.mean(-2) * y.mean(-2)).sum(-1)
  rest = (x * y).sum((-2, -1)) - of_seeds - of_pictures
  free_seeds, free_pictures = max(seeds - 1, 1), max(pictures - 1, 1)
  return Products(
    of_seeds / free_seeds, of_pictures / free_pictures, rest / (free_seeds * free_pictures)
  )


def variance(squares: Products, shape: tuple[int, ...], *, trained: bool) -> Variance:
  """Returns the variance of a mean from mean squares.

  Args:
    squares: the mean squares, from `products` of a measurement with itself.
    shape: of the values, (..., seeds, pictures); `can_tell` must hold.
    trained: whether seeds are a random factor.
  """
  seeds, pictures = shape[-2:]
  freedom = max(seeds - 1, 1), max(pictures - 1, 1)
  seed, picture, rest = (np.maximum(square, 0.0) / (seeds * pictures) for square in squares)
  if not trained:
    seed = rest = np.zeros_like(seed)
  return Variance(np.maximum(seed - rest, 0.0), picture, seed, freedom)


def estimate(
  values: np.ndarray, *, trained: bool, groups: np.ndarray | None = None
) -> tuple[np.ndarray, Variance] | None:
  """Returns means (...) and their variances; None if `can_tell` says so, or groups are too few.

  Args:
    values: (..., seeds, pictures), all finite.
    trained: whether a model was trained for every seed, so that seeds are a random factor.
    groups: (pictures,), groups of pictures that share content, which count equally; None if the
      pictures are independent.
  """
  values = by_group(np.asarray(values, np.float64), groups)
  few = groups is not None and values.shape[-1] < MIN_PICTURES
  if few or not can_tell(values.shape, trained=trained):
    return None
  found = variance(products(values, values), values.shape, trained=trained)
  return values.mean((-2, -1)), found


def has_spread(mean: np.ndarray, found: Variance) -> np.ndarray:
  """Whether values differ by more than rounding, so that they tell of their mean's error, (...)."""
  return np.asarray(found.error > np.maximum(_ROUNDING, _RELATIVE_ROUNDING * np.abs(mean)))


def wilson(share: float, count: int) -> list[float]:
  """Returns the interval of a share of `count` trials (Wilson, J. Am. Stat. Assoc. 22, 1927).

  For shares averaged over repeated draws for the same pictures it is wider than it needs to be.
  """
  square = float(special.ndtri(0.5 * (1.0 + LEVEL))) ** 2
  middle = (share + square / (2 * count)) / (1 + square / count)
  variance = share * (1 - share) / count + square / (4 * count**2)
  reach = (square * variance) ** 0.5 / (1 + square / count)
  return [middle - reach, middle + reach]


def p_value(mean: np.ndarray, found: Variance) -> np.ndarray:
  """Returns two-sided p values of means against zero: the `chance` whose reach is |mean|."""
  low, high = np.full(np.shape(mean), -30.0), np.zeros(np.shape(mean))
  for _ in range(40):
    middle = 0.5 * (low + high)
    beyond = np.abs(mean) > found.reach(10.0**middle)
    low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
  return np.asarray(10.0**high)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
  """Corrects the p values of a family of claims (Holm, Scand. J. Statist. 6, 1979).

  Claims whose corrected value is below 1 - `LEVEL` hold together with that error. None stays None
  and does not count.
  """
  known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
  corrected: list[float | None] = [None] * len(p_values)
  largest = 0.0
  for rank, (p, i) in enumerate(known):
    largest = max(largest, min(1.0, (len(known) - rank) * p))
    corrected[i] = largest
  return corrected


def summarise(
  values: np.ndarray,
  *,
  trained: bool,
  groups: np.ndarray | None = None,
  flags: bool = False,
) -> dict[str, Any]:
  """Returns the mean, its spread over pictures and seeds, and its interval.

  Args:
    values: (seeds, pictures); NaN for missing values.
    trained: whether a model was trained for every seed, so that seeds are a random factor.
    groups: (pictures,), groups of pictures that share content, as for `estimate`.
    flags: whether values are 0 or 1, so that their interval is Wilson's and there is no "p" (not
      where models are trained).

  Returns:
    "mean" (of the groups' means, where there are groups); "std" over pictures (of each picture's
    mean over seeds); "seed_std" of the seeds' means, None for a single seed; "interval" at `LEVEL`;
    "p" of the t test against zero; "count" of pictures with a value. Undefined entries are None.
  """
  known = np.isfinite(values).all(axis=0)
  kept = values[:, known]
  count = kept.shape[1]
  if not count:
    undefined = dict.fromkeys(("mean", "std", "seed_std", "interval", "p"))
    return {**undefined, "count": 0}
  each = kept.mean(axis=0)
  own = None if groups is None else groups[known]
  grouped = by_group(kept, own)
  mean = float(grouped.mean())
  if flags and not trained:
    few = own is not None and grouped.shape[1] < MIN_PICTURES
    claim = {"interval": None if few else wilson(mean, grouped.shape[1]), "p": None}
  else:
    claim = _claim(kept, trained, own)
  return {
    "mean": mean,
    "std": float(each.std(ddof=1)) if count > 1 else None,
    "seed_std": float(grouped.mean(axis=1).std(ddof=1)) if len(kept) > 1 else None,
    **claim,
    "count": count,
  }


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
  """Returns "mean", "std", "interval" and "p" of the finite values of trainings, and all "values".

  Too few values, or equal ones (a measurement without training), have no interval.
  """
  finite = np.array([v for v in values if np.isfinite(v)], np.float64)
  return {
    "mean": float(finite.mean()) if len(finite) else None,
    "std": float(finite.std(ddof=1)) if len(finite) > 1 else None,
    **_claim(finite[:, None], True),
    "values": [float(v) for v in values],
  }


def _claim(values: np.ndarray, trained: bool, groups: np.ndarray | None = None) -> dict[str, Any]:
  found = estimate(values, trained=trained, groups=groups)
  if found is None or not has_spread(*found):
    return {"interval": None, "p": None}
  mean, spread = float(found[0]), found[1]
  reach = float(spread.reach())
  return {"interval": [mean - reach, mean + reach], "p": float(p_value(found[0], spread))}
