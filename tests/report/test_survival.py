"""What a matrix's numbers say of survival: tables, sentences, and their limits."""

from __future__ import annotations

import pytest

from tests.report.matrices import make_report
from udp_jax.metrics import survival
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


def test_trained_threats_with_few_seeds_claim_nothing() -> None:
  report = make_report()
  for table in report["tables"]:
    for line in table["survival"][next(iter(table["survival"]))]:
      line |= {"worst": None, "reason": survival.TOO_FEW}
  said = shown.findings(report)
  assert all(
    line.endswith("nothing is claimed from so few trained models or pictures.") for line in said
  )


def test_worst_case_says_of_how_many_it_is() -> None:
  said = shown.findings(make_report())
  assert "(after IMPRESS, the worst of 2)." in said[0] and ", interval " in said[0]


@pytest.mark.parametrize(
  ("interval", "side"),
  [([0.7, 0.9], "kept"), ([0.6, 1.0], ""), ([0.1, 0.3], "lost"), ([0.1, 0.5], ""), (None, "")],
)
def test_colours_need_the_whole_interval(interval: list[float] | None, side: str) -> None:
  value = 0.5 if interval is None else sum(interval) / 2
  assert shown._ratio({"value": value, "interval": interval, "reason": ""})["side"] == side
