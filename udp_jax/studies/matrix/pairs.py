"""Pairs each row of a matrix with the rows that it is compared with."""

from __future__ import annotations

from typing import Any

from udp_jax.data.marks import CLEAN
from udp_jax.metrics.differences import Pair
from udp_jax.studies import rows
from udp_jax.studies.matrix.plan import CONTROL, Plan

# Options of `protections.adaptive` and `protections.spectrum`.
_ADAPTIVE = ("transforms", "consistency_weight", "band")


def pairs(config: Any, plan: Plan) -> list[Pair]:
  """Returns the rows that each protection is compared with, in the plan's order.

  The control is noise with the protection's own values if the plan has such a row, else the random
  noise that every plan has. An adaptive form, or one in a band, is also compared with its plain
  form: the row of the same method, rounds and other options.

  Args:
    config: settings with the model that protections attack.
    plan: rows of the run.
  """
  protections = [row for row in plan.rows if not rows.is_control(config, row)]
  matched = {}
  for name in plan.rows:
    if name != CLEAN and (found := rows.settings(config, name)).method == "matched_noise":
      matched[found.imitates] = name
  result = [Pair(row, matched.get(row, CONTROL), "control") for row in protections]
  for row in protections:
    if not _adaptive(config, row):
      continue
    for other in protections:
      if not _adaptive(config, other) and _plain(config, other) == _plain(config, row):
        result.append(Pair(row, other, "plain"))
  return result


def _adaptive(config: Any, row: str) -> bool:
  return any(rows.settings(config, row).options.get(name) for name in _ADAPTIVE)


def _plain(config: Any, name: str) -> tuple[Any, ...]:
  row = rows.settings(config, name)
  options = {
    k: v for k, v in row.options.items() if k not in _ADAPTIVE and not k.startswith("band_")
  }
  return row.method, row.num_rounds, row.imitates, options
