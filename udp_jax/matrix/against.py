"""What a protection does beyond another row: beyond noise, or beyond its own plain form.

For a metric m that grows with protection (its sign is turned where it falls), rows p and c and a
purifier q, the difference is the mean over pictures of m(p, q) - m(c, q), in units of the metric.
A share of a small effect says little; this says whether anything is left that noise would not do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from udp_jax.matrix.naming import Pair
from udp_jax.metrics import spread


def table(
  values: Mapping[tuple[str, str], np.ndarray],
  pairs: Sequence[Pair],
  purifiers: Sequence[str],
  *,
  better: str,
  draws: int = 1000,
  seed: int = 0,
) -> list[dict[str, Any]]:
  """The differences of one metric, for every pair and purifier.

  Args:
    values: (row, purifier) -> (seeds, pictures), the same pictures in the same order everywhere;
      cells that were not measured are missing.
    pairs: of rows.
    purifiers: "none" among them.
    better: "higher" or "lower": which way the metric goes when pictures are protected.
    draws: bootstrap resamples.
    seed: of the resamples.

  Returns:
    One entry a pair: "row", "other", "kind", and "purifiers" {name: {"mean", "interval", "std",
    "seed_std", "count"}}, None where it was not measured; positive means more protection.
  """
  sign = {"higher": 1.0, "lower": -1.0}[better]
  lines = []
  for pair in pairs:
    found = {}
    for purifier in purifiers:
      own, other = values.get((pair.row, purifier)), values.get((pair.other, purifier))
      if own is None or other is None:
        difference = np.zeros((1, 0))
      else:
        difference = sign * (own - other)
      found[purifier] = spread.summarise(difference, draws=draws, seed=seed)
    lines.append({**pair._asdict(), "purifiers": found})
  return lines
