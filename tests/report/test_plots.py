"""Figures: series that can be told apart, dots, and the front of what is best."""

from __future__ import annotations

import pytest

from tests.report.pages import make_report
from udp_jax.report import plots


def test_series_can_be_told_apart(source):
  rows = [{"name": f"c{i}", "label": "c", "control": True} for i in range(9)]
  rows += [{"name": f"m{i}", "label": "m", "control": False} for i in range(9)]
  series = plots.assign_series(rows, ["extra", "c0"])
  assert list(series) == [row["name"] for row in rows] + ["extra"]
  assert len({(entry.color, entry.dashes) for entry in series.values()}) == len(series)
  style = source.split("</style>")[0]
  for entry in series.values():
    assert style.count(f"--s{entry.color}:") == 2  # light and dark


def test_dots_need_two_rows():
  report = make_report()
  series = plots.assign_series(report["rows"])
  one = [row for row in report["rows"] if row["name"] == "eudp"]
  assert plots.metric_dots(report["columns"][0], one, series, "p") is None
  assert plots.metric_dots(report["columns"][0], report["rows"], series, "p") is not None


@pytest.mark.parametrize(
  ("points", "front"),
  [
    ([], []),
    ([("a", 1, 1)], ["a"]),
    ([("a", 1, 1), ("b", 2, 2), ("c", 3, 1.5), ("d", 0.5, 0.2)], ["d", "a", "b"]),
    ([("a", 1, 1), ("b", 1, 2)], ["b"]),
  ],
)
def test_pareto_front(points: list, front: list[str]) -> None:
  assert [name for name, *_ in plots.pareto_front(points)] == front
