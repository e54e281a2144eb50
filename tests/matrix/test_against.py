"""Differences between rows, and which rows are compared, on cases that can be told by hand."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.configs import matrix as building
from udp_jax.matrix import against, naming, plan
from udp_jax.matrix.naming import Pair


def test_differences_are_paired_and_signed() -> None:
  values = {
    ("foo", "none"): np.array([[1.0, 5.0, 9.0]]),
    ("noise", "none"): np.array([[0.0, 4.0, 8.0]]),
    ("foo", "jpeg"): np.array([[2.0, 2.0, np.nan]]),
    ("noise", "jpeg"): np.array([[1.0, 3.0, 7.0]]),
    ("foo", "blur"): np.array([[1.0, 1.0, 1.0]]),
  }
  pairs = [Pair("foo", "noise", "control")]
  [up] = against.table(values, pairs, ["none", "jpeg", "blur"], better="higher", draws=50)
  [down] = against.table(values, pairs, ["none", "jpeg", "blur"], better="lower", draws=50)
  assert (up["row"], up["other"], up["kind"]) == ("foo", "noise", "control")
  # 1 for every picture, however much the pictures differ: no doubt about it.
  assert up["purifiers"]["none"]["mean"] == 1.0 and up["purifiers"]["none"]["interval"] == [1, 1]
  assert down["purifiers"]["none"]["mean"] == -1.0
  # A picture without a value is left out.
  assert up["purifiers"]["jpeg"]["mean"] == 0.0 and up["purifiers"]["jpeg"]["count"] == 2
  assert up["purifiers"]["blur"]["mean"] is None and up["purifiers"]["blur"]["interval"] is None


@pytest.fixture(scope="module")
def config():
  config = building.matrix("Names")
  config.protections.random_noise = {"distribution": "sign"}
  config.protections.mist_noise = {"method": "matched_noise", "of": "mist"}
  config.protections.mist_adaptive = {"method": "mist", "transforms": "jpeg"}
  config.protections.strong = {"method": "mist", "radius_255": 16.0, "transforms": "jpeg"}
  config.protections.photoguard_encoder = {"decay_steps": 0}
  return config


def test_which_rows_are_compared(config) -> None:
  rows = ("mist_noise", "mist", "mist_adaptive", "photoguard_encoder", "strong")
  assert naming.pairs(config, plan.make(config, rows=rows, threats=())) == [
    Pair("mist", "mist_noise", "control"),
    Pair("mist_adaptive", "random_noise", "control"),
    Pair("photoguard_encoder", "random_noise", "control"),
    Pair("strong", "random_noise", "control"),
    # "strong" has a budget of its own: its plain form is no row.
    Pair("mist_adaptive", "mist", "plain"),
  ]


@pytest.mark.parametrize(
  ("row", "label", "control"),
  [
    ("clean", "Clean", True),
    ("random_noise", "Sign noise, full strength", True),
    ("mist_noise", "Mist, matched noise", True),
    ("mist_adaptive", "Mist, adaptive", False),
    ("photoguard_encoder", "PhotoGuard (encoder)", False),
    ("strong", "strong", False),
  ],
)
def test_names(row: str, label: str, control: bool, config) -> None:
  assert naming.row_label(config, row) == label
  assert naming.is_control(config, row) == control
