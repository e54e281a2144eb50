"""Differences between rows, on cases that can be told by hand."""

from __future__ import annotations

import numpy as np
import pytest

from udp_jax.metrics import differences
from udp_jax.metrics.differences import Pair


def test_differences_are_paired_and_signed() -> None:
  values = {
    ("foo", "none"): np.array([[1.0, 5.0, 9.0]]),
    ("noise", "none"): np.array([[0.001, 4.0, 7.999]]),
    ("foo", "jpeg"): np.array([[2.0, 2.0, np.nan]]),
    ("noise", "jpeg"): np.array([[1.0, 3.0, 7.0]]),
    ("foo", "blur"): np.array([[1.0, 1.0, 1.0]]),
  }
  pairs = [Pair("foo", "noise", "control")]
  [up] = differences.table(values, pairs, ["none", "jpeg", "blur"], better="higher", trained=False)
  [down] = differences.table(values, pairs, ["none", "jpeg", "blur"], better="lower", trained=False)
  assert (up["row"], up["other"], up["kind"]) == ("foo", "noise", "control")
  # About 1 for every picture, however much the pictures differ: little doubt about it.
  assert up["purifiers"]["none"]["mean"] == pytest.approx(1.0)
  assert up["purifiers"]["none"]["interval"] == pytest.approx([1, 1], abs=0.005)
  assert down["purifiers"]["none"]["mean"] == pytest.approx(-1.0)
  # A picture without a value is left out.
  assert up["purifiers"]["jpeg"]["mean"] == 0.0 and up["purifiers"]["jpeg"]["count"] == 2
  assert up["purifiers"]["blur"]["mean"] is None and up["purifiers"]["blur"]["interval"] is None


def test_only_what_passes_holm_counts() -> None:
  """P values of about 0.03, twice: either alone would pass, both of them do not."""
  values = {("noise", name): np.zeros((1, 3)) for name in ("none", "jpeg")}
  values |= {("foo", name): np.array([[1.0, 1.5, 0.9]]) for name in ("none", "jpeg")}
  pairs = [Pair("foo", "noise", "control")]
  for purifiers, side in ((["none"], 1), (["none", "jpeg"], 0)):
    [line] = differences.table(values, pairs, purifiers, better="higher", trained=False)
    found = line["purifiers"]["none"]
    assert 0.025 < found["p"] < 0.05 and found["interval"][0] > 0
    assert found["holm"] == pytest.approx(len(purifiers) * found["p"])
    assert differences.side(found) == side
  [line] = differences.table(values, pairs, ["none"], better="lower", trained=False)
  assert differences.side(line["purifiers"]["none"]) == -1
  [line] = differences.table(values, pairs, ["none"], better="higher", trained=True)
  assert line["purifiers"]["none"]["holm"] is None and differences.side(None) == 0
