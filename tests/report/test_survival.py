"""What a matrix's numbers say of survival: tables, sentences, and their limits."""

from __future__ import annotations

import pytest

from tests.report.matrices import make_report
from udp_jax.report import survival as shown


def test_plain_table() -> None:
  head, rule, noise, foo, *_ = shown.format_survival(make_report()).split("\n")
  assert head.split()[-4:] == ["effect", "worst", "after", "mean"]
  assert set(rule) <= {"-", " "} and len(rule) == len(head)
  assert noise.split()[-3:] == ["-", "-", "-"]
  assert foo.split()[-3:] == ["0.10", "IMPRESS", "0.30"]


def test_a_run_that_tells_nothing_says_so() -> None:
  report = make_report()
  for table in report["tables"]:
    for lines in table["survival"].values():
      for line in lines:
        line["worst"] = None
  said = shown.findings(report)
  assert len(said) == 2
  assert all("so the run is too small, or the protections too weak" in line for line in said)


@pytest.mark.parametrize(
  ("interval", "side"), [([0.1, 0.2], 1), ([-0.2, -0.1], -1), ([-0.1, 0.1], 0), (None, 0)]
)
def test_what_is_surely_above_zero(interval: list[float] | None, side: int) -> None:
  assert shown.side({"interval": interval}) == side
