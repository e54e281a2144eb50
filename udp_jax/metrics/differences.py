"""Differences between a protection and a comparison row: noise, or the protection's plain form.

For a metric m that grows with protection (falling metrics change sign), rows p and c and a purifier
q, the difference is the mean over pictures of m(p, q) - m(c, q), in units of the metric. A share of
a small effect says little; the difference shows whether a protection still beats noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from udp_jax.metrics import statistics


class Pair(NamedTuple):
  """A row and the row that it is compared with.

  Attributes:
    row: name of a protection.
    other: name of a control, or of the same protection in its plain form.
    kind: "control" or "plain".
  """

  row: str
  other: str
  kind: str


def table(
  values: Mapping[tuple[str, str], np.ndarray],
  pairs: Sequence[Pair],
  purifiers: Sequence[str],
  *,
  better: str,
  draws: int = 1000,
  seed: int = 0,
) -> list[dict[str, Any]]:
  """Returns the differences of one metric for every pair and purifier.

  Args:
    values: (row, purifier) -> (seeds, pictures), the same pictures in the same order everywhere;
      cells that were not measured are missing.
    pairs: pairs of rows.
    purifiers: names of purifiers, including "none".
    better: "higher" or "lower", the direction of the metric for stronger protection.
    draws: number of bootstrap resamples.
    seed: seed of the resamples.

  Returns:
    One entry per pair: "row", "other", "kind", and "purifiers" {name: {"mean", "interval", "std",
    "seed_std", "count"}}, None if not measured; positive values mean more protection.
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
      found[purifier] = statistics.summarise(difference, draws=draws, seed=seed)
    lines.append({**pair._asdict(), "purifiers": found})
  return lines
