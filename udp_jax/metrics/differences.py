"""Differences between a protection and a comparison row: noise, or the protection's plain form.

For a metric m that grows with protection (falling metrics change sign), rows p and c and a purifier
q, the difference is the mean over pictures of m(p, q) - m(c, q), in units of the metric. A share of
a small effect says little; the difference shows whether a protection still beats noise. Rows are
paired: a picture, a seed and a purifier have the same draws in both. A table makes many claims, so
only those that pass Holm's correction over the whole table count.
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
  trained: bool,
  groups: np.ndarray | None = None,
) -> list[dict[str, Any]]:
  """Returns the differences of one metric for every pair and purifier.

  Args:
    values: (row, purifier) -> (seeds, pictures), the same pictures in the same order everywhere;
      cells that were not measured are missing.
    pairs: pairs of rows.
    purifiers: names of purifiers, including "none".
    better: "higher" or "lower", the direction of the metric for stronger protection.
    trained: whether a model was trained for every seed, so that seeds are a random factor.
    groups: (pictures,), groups of pictures that share content, as for `statistics.estimate`.

  Returns:
    One entry per pair: "row", "other", "kind", and "purifiers" {name: {"mean", "interval", "std",
    "seed_std", "p", "holm", "count"}}, None if not measured; positive values mean more protection.
    "holm" is the p value corrected over all pairs and purifiers.
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
      found[purifier] = statistics.summarise(difference, trained=trained, groups=groups)
    lines.append({**pair._asdict(), "purifiers": found})
  correct([found for line in lines for found in line["purifiers"].values()])
  return lines


def correct(claims: Sequence[dict[str, Any]]) -> None:
  """Sets "holm" of all claims of one table, from their "p"."""
  for claim, corrected in zip(
    claims, statistics.holm([claim["p"] for claim in claims]), strict=True
  ):
    claim["holm"] = corrected


def side(claim: Mapping[str, Any] | None) -> int:
  """1 if a difference passes Holm's correction and is above zero, -1 if below, else 0."""
  if claim is None or claim["holm"] is None or claim["holm"] >= 1.0 - statistics.LEVEL:
    return 0
  return 1 if claim["mean"] > 0 else -1
