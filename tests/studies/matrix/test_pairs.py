"""Which rows of a matrix are compared."""

from __future__ import annotations

from udp_jax.metrics.differences import Pair
from udp_jax.studies.matrix import pairs, plan


def test_which_rows_are_compared(named_config) -> None:
  rows = ("mist_noise", "mist", "mist_adaptive", "mist_low", "photoguard_encoder", "strong")
  assert pairs.pairs(named_config, plan.make(named_config, rows=rows, threats=())) == [
    Pair("mist", "mist_noise", "control"),
    Pair("mist_adaptive", "random_noise", "control"),
    Pair("mist_low", "random_noise", "control"),
    Pair("photoguard_encoder", "random_noise", "control"),
    Pair("strong", "random_noise", "control"),
    # "strong" has a budget of its own: its plain form is no row.
    Pair("mist_adaptive", "mist", "plain"),
    Pair("mist_low", "mist", "plain"),
  ]
