"""The part of a report that every study has."""

from __future__ import annotations

import pytest
from ml_collections import ConfigDict
from scipy import stats

from udp_jax.metrics.differences import Pair
from udp_jax.report import study

CONFIG = ConfigDict({"title": "A study", "notice": "", "radius_255": 16.0, "seed": 1,
                     "threat": {"seeds": (3, 4)}})  # fmt: skip


def _rows(*budgets: float | None) -> list[dict]:
  values = [100.0, 50.0, None, 200.0]
  return [
    {
      "name": f"row{i}",
      "label": f"Row {i}",
      "radius_255": budget,
      "metrics": {"fd_samples": {"mean": values[i]}},
    }
    for i, budget in enumerate(budgets)
  ]


def test_one_budget_needs_no_column() -> None:
  columns = study.columns("FD-Net")
  found = study.frame(CONFIG, "done", _rows(None, 16.0, 16.0), columns)
  assert found["columns"] == columns and found["radius_255"] == 16.0
  assert (found["title"], found["notice"], found["seeds"]) == ("A study", None, [3, 4])
  assert found["summary"] == "done" and found["config"] == CONFIG.to_dict()
  assert found["versions"]["jax"] and found["hardware"]["backend"]


def test_rows_with_budgets_of_their_own_show_them() -> None:
  found = study.frame(CONFIG, "done", _rows(None, 7.65, 16.0), study.columns("FD-Net"))
  assert found["columns"][-1]["key"] == "radius_255" and found["radius_255"] == 16.0
  shown = [row["metrics"]["radius_255"] for row in found["rows"]]
  assert [entry["mean"] for entry in shown] == [None, 7.65, 16.0]
  assert shown[0]["values"] == [] and shown[1]["values"] == [7.65]


def test_columns_are_told_apart() -> None:
  columns = study.columns("FD-Net")
  assert len({column["key"] for column in columns}) == len(columns)
  assert [c["label"] for c in columns[:2]] == ["FD-Net (samples)", "FD-Net (training set)"]
  assert {column["better"] for column in columns} == {"higher", "lower", None}


@pytest.mark.parametrize(
  ("budgets", "levels"),
  [((None, 16.0, 16.0, 16.0), "16"), ((None, 7.65, 16.0, 16.0), "7.65 to 16")],
)
def test_the_summary_ranks_what_was_measured(budgets: tuple, levels: str) -> None:
  said = study.summary(CONFIG, _rows(*budgets), 12)
  assert f"12 pictures were protected with at most {levels} of 255 levels" in said
  assert said.endswith("farthest first: Row 3 200, Row 0 100, Row 1 50.")
  assert "farthest" not in study.summary(CONFIG, [_rows(*budgets)[2]], 12)


def test_differences_pair_the_seeds() -> None:
  """Seeds differ by much, rows by little: only pairs tell, and lower is better for precision."""
  seeds = {"foo": [1.0, 3.1, 8.2, 5.1], "noise": [0.0, 2.0, 7.0, 4.0]}
  rows = [
    {"name": name, "metrics": {"fd_samples": {"values": v}, "precision": {"values": v}}}
    for name, v in seeds.items()
  ]
  pairs = [Pair("foo", "noise", "control")]
  [line] = study.against(rows, study.columns("FD-Net"), pairs)
  assert (line["row"], line["other"]) == ("foo", "noise")
  assert set(line["metrics"]) == {"fd_samples", "precision"}
  up, down = line["metrics"]["fd_samples"], line["metrics"]["precision"]
  expected = stats.ttest_rel(seeds["foo"], seeds["noise"])
  assert up["mean"] == pytest.approx(1.1) and down["mean"] == pytest.approx(-1.1)
  assert up["interval"] == pytest.approx(expected.confidence_interval(0.95))
  assert up["p"] == pytest.approx(expected.pvalue)
  assert up["holm"] == down["holm"] == pytest.approx(2 * expected.pvalue)
  for row in rows:
    row["metrics"] = {name: {"values": v["values"][:2]} for name, v in row["metrics"].items()}
  [line] = study.against(rows, study.columns("FD-Net"), pairs)
  assert line["metrics"]["fd_samples"]["interval"] is None
  assert line["metrics"]["fd_samples"]["holm"] is None
