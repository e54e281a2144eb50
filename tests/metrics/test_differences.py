"""Differences between rows, on cases that can be told by hand."""

from __future__ import annotations

import numpy as np

from udp_jax.metrics import differences
from udp_jax.metrics.differences import Pair


def test_differences_are_paired_and_signed() -> None:
  values = {
    ("foo", "none"): np.array([[1.0, 5.0, 9.0]]),
    ("noise", "none"): np.array([[0.0, 4.0, 8.0]]),
    ("foo", "jpeg"): np.array([[2.0, 2.0, np.nan]]),
    ("noise", "jpeg"): np.array([[1.0, 3.0, 7.0]]),
    ("foo", "blur"): np.array([[1.0, 1.0, 1.0]]),
  }
  pairs = [Pair("foo", "noise", "control")]
  [up] = differences.table(values, pairs, ["none", "jpeg", "blur"], better="higher", draws=50)
  [down] = differences.table(values, pairs, ["none", "jpeg", "blur"], better="lower", draws=50)
  assert (up["row"], up["other"], up["kind"]) == ("foo", "noise", "control")
  # 1 for every picture, however much the pictures differ: no doubt about it.
  assert up["purifiers"]["none"]["mean"] == 1.0 and up["purifiers"]["none"]["interval"] == [1, 1]
  assert down["purifiers"]["none"]["mean"] == -1.0
  # A picture without a value is left out.
  assert up["purifiers"]["jpeg"]["mean"] == 0.0 and up["purifiers"]["jpeg"]["count"] == 2
  assert up["purifiers"]["blur"]["mean"] is None and up["purifiers"]["blur"]["interval"] is None
