"""Tables in plain text, numbers as text, and strict JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.report.pages import make_report
from udp_jax.report import text


def test_format_table():
  assert text.format_table(make_report()).split("\n") == [
    "                                     Final loss",
    "training set              FD   PSNR       on it",
    "------------  --------------  -----  ----------",
    "Clean           100.0 +- 2.0      -      0.0500",
    "Random noise     90.5 +- 0.2  27.00      0.0625",
    "EUDP          1000.0 +- 12.0  26.12           -",
    "+-: standard deviation over 2 seed(s)",
  ]


@pytest.mark.parametrize(
  ("value", "expected"),
  [(None, "-"), (float("nan"), "-"), (float("inf"), "-"), (-0.001, "0.00"), (-1.0, "-1.00")],
)
def test_format_number(value, expected):
  assert text.format_number(value, 2) == expected


def test_write_json_is_strict_and_sorted(tmp_path):
  path = tmp_path / "new" / "report.json"
  values = {"b": np.float32(0.5), "a": [float("nan"), np.inf, np.arange(2)], "c": (True, "é")}
  text.write_json(path, values)

  def refuse(name):
    raise AssertionError(name)

  stored = json.loads(path.read_text("utf-8"), parse_constant=refuse)
  assert stored == {"a": [None, None, [0, 1]], "b": 0.5, "c": [True, "é"]}
  assert list(stored) == ["a", "b", "c"]
  with pytest.raises(TypeError, match="cannot hold a set"):
    text.write_json(path, {"a": {1}})
  assert json.loads(path.read_text("utf-8")) == stored
