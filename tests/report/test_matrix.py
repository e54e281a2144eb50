"""The page of a matrix, read back by an HTML parser and by a browser."""

from __future__ import annotations

import copy
import shlex
from typing import Any

import numpy as np
import pytest

from tests.report.matrices import PURIFIERS, ROWS, make_report
from tests.report.pages import NASTY, Page, squeeze
from udp_jax.metrics import differences, statistics, survival
from udp_jax.report import matrix
from udp_jax.report import survival as shown
from udp_jax.report.mosaics import Mosaics
from udp_jax.studies.matrix import results

ABOUT = {
  "command": "python -m experiments.impress --config=demo --workdir=here",
  "commit": "0123abc",
  "started": "2026-11-22T10:00:00+00:00",
  "ended": "2026-11-22T10:10:00+00:00",
  "seconds": {"purify": 12.5},
  "hardware": {"device": "cpu"},
  "versions": {"jax": "0.10.2"},
}


def make_mosaics() -> Mosaics:
  generator = np.random.default_rng(0)

  def some() -> np.ndarray:
    return generator.integers(0, 256, (4, 8, 8, 3), np.uint8)

  made = {row: {p: {"pictures": some(), "img2img": some()} for p in PURIFIERS} for row in ROWS}
  del made["bar"]["impress"]["img2img"]
  return made


def _about(report: dict, **more: Any) -> dict[str, Any]:
  return ABOUT | {"example": results.example(report)} | more


def _render(report: dict, mosaics: Mosaics, **more: Any) -> str:
  return matrix.render(report, _about(report, **more), mosaics)


def test_survival_table_says_what_the_report_says() -> None:
  report = make_report()
  page = Page(_render(report, make_mosaics()))
  rows = [[squeeze(cell) for cell in row] for row in page.table]
  start = next(i for i, row in enumerate(rows) if row[0] == "Protection")
  assert rows[start] == ["Protection", "Effect", "jpeg", "impress", "Worst case", "Mean"]
  noise, foo, bar = rows[start + 1 : start + 4]
  assert noise[0] == "Random Noise control" and noise[2:] == ["- no effect"] * 4
  assert foo[0] == "Foo" and foo[1].startswith(("0.9", "1.0"))
  assert foo[2].split()[0] == "0.50" and foo[3].split()[0] == "0.10"
  assert foo[4].startswith("0.10 0.") and foo[4].endswith("of 2 purifiers")
  assert foo[5] == bar[5] == "0.30 of 2 purifiers"
  # One of its purifiers failed: no worst case to compare with others'.
  edits = start + 1 + rows[start + 1 :].index(rows[start])
  failed = rows[edits + 3]
  assert failed[0] == "Bar"
  assert failed[3] == "- not measured" and failed[4].endswith(" of 1 purifiers")
  notes = [attrs.get("title") for attrs in page.all("td")]
  assert survival.NO_EFFECT in notes and survival.NOT_MEASURED in notes


def test_page_states_formula_command_failures_and_origin() -> None:
  page = Page(_render(make_report(), make_mosaics()))
  text = squeeze(page.text)
  for words in (
    f"survival = {survival.FORMULA}",
    survival.GATE,
    survival.SELECTION,
    statistics.MEANING,
    "demonstration, not evidence",
    "--rows=foo --purifiers=impress --threats=img2img --workdir=WORKDIR",
    "bar / impress / img2img, seed 0: ValueError: no luck",
    "python -m experiments.impress --config=demo --workdir=here",
    "0123abc", "2026-11-22T10:00:00+00:00", "sha256:12", "a note", "tiny_ldm", "not made",
    "Img2img (edits), SSIM: 2 of 2 had an effect to lose, 2 beyond their noise control and 1 still",
    "Foo has the highest estimate of its worst case, 10 %, interval 10 to 10 % (after IMPRESS, the",
    "Cells that failed and are missing: 1.",
  ):  # fmt: skip
    assert words in text, words


def test_mosaics_hold_the_pictures() -> None:
  mosaics = make_mosaics()
  page = Page(_render(make_report(), mosaics))
  assert len(page.all("img")) == 4 * 3 * 2 - 1
  tile = page.pixels("Foo, jpeg: img2img")
  assert tile.shape == (17, 17, 4)
  np.testing.assert_array_equal(tile[:8, 9:, :3], mosaics["foo"]["jpeg"]["img2img"][1])


def test_hostile_texts_stay_texts() -> None:
  report = make_report()
  for key in ("title", "notice", "model"):
    report[key] = NASTY
  report["command"] = shlex.join(["python", NASTY])
  report["rows"][2]["label"] = report["purifiers"][1]["label"] = NASTY
  report["failures"][0]["error"] = NASTY
  report["tables"][0]["metrics"][1]["label"] = NASTY
  page = Page(_render(report, make_mosaics(), hardware={NASTY: NASTY}))
  assert [tag for tag, _ in page.elements].count("script") == 1
  assert all(attrs["src"].startswith("data:") for attrs in page.all("img"))
  assert NASTY in page.text


def test_nothing_measured_still_makes_a_page() -> None:
  report = make_report()
  for table in report["tables"]:
    table["survival"], table["against"], table["metrics"] = {}, {}, []
    for entry in table["cells"]:
      entry["error"], entry["metrics"] = "not made", {}
  page = Page(_render(report, {}))
  assert "pareto" not in page.ids() and {"survival", "cells"} <= set(page.ids())
  assert shown.format_survival(report) == "nothing was measured"


def test_same_input_same_page() -> None:
  report, mosaics = make_report(), make_mosaics()
  first = _render(report, mosaics)
  assert _render(copy.deepcopy(report), mosaics) == first


@pytest.mark.slow
def test_page_works_in_a_browser(tmp_path, open_in_browser) -> None:
  page = tmp_path / "report.html"
  matrix.write_report(page, make_report(), _about(make_report()), make_mosaics())
  probe = """
    for (const details of document.querySelectorAll("details")) details.open = true;
    const table = document.querySelector("#survival-0-latent_distance");
    const order = () => [...table.tBodies[0].rows].map(row => row.dataset.row).join(" ");
    const click = index => {
      table.tHead.rows[0].cells[index].querySelector("button").click();
      return order();
    };
    const sorted = [];
    for (const other of document.querySelectorAll("table"))
      for (const head of other.tHead.rows[0].cells) {
        head.querySelector("button").click();
        sorted.push(head.getAttribute("aria-sort"));
      }
    for (const other of document.querySelectorAll("table"))
      for (const head of other.tHead.rows[0].cells)
        while (head.getAttribute("aria-sort")) head.querySelector("button").click();
    return {
      widths: [...document.images].map(image => image.naturalWidth),
      overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
      figures: [...document.querySelectorAll("svg[role=img]")].map(svg => svg.clientHeight > 50),
      sorted: sorted.every(way => way !== null),
      effect: [click(1), click(1), click(1)],
      name: click(0),
    };"""
  findings = open_in_browser(page, probe)
  assert findings["errors"] == []
  assert findings["requests"] == []
  result = findings["result"]
  assert result["widths"] == [17] * 23
  assert result["overflow"] == 0
  # Edits have one protection with all purifiers only: no second point.
  assert result["figures"] == [True] * 2
  assert result["sorted"]
  assert result["effect"][:2] == ["bar foo random_noise", "random_noise foo bar"]
  assert result["effect"][2] == "random_noise foo bar"
  assert result["name"] == "bar foo random_noise"


def test_without_purifiers_nothing_is_said_of_survival() -> None:
  report = make_report()
  assert "Survival is the share" in shown.summary(report)
  alone = make_report(("none",))
  said = shown.summary(alone)
  assert "through 0 purifiers" in said and "effects and no survival" in said
  assert shown.findings(report) and not shown.findings(alone)
  page = Page(_render(alone, {}))
  rows = [[squeeze(cell) for cell in row] for row in page.table]
  assert ["Protection", "Effect"] in rows
  assert not {"Worst case", "Mean"} & {cell for row in rows for cell in row}
  assert "survival =" not in squeeze(page.text)
  head, *_ = shown.format_survival(alone).split("\n")
  assert head.split()[-1] == "effect"


def test_differences_are_those_of_the_report() -> None:
  report = make_report()
  page = Page(_render(report, {}))
  rows = [[squeeze(cell) for cell in row] for row in page.table]
  start = rows.index(["Protection", "minus", "as it is", "jpeg", "impress"])
  foo, _, adaptive = rows[start + 1 : start + 4]
  assert foo[:2] == ["Foo", "Random Noise"] and adaptive[:2] == ["Bar", "Foo"]
  [line] = [x for x in report["tables"][0]["against"]["latent_distance"] if x["kind"] == "plain"]
  found = line["purifiers"]["jpeg"]
  assert found["mean"] == pytest.approx(0.5, abs=0.1) and differences.side(found) == 1
  low, high = (f"{end:.3f}" for end in found["interval"])
  assert adaptive[3] == f"{found['mean']:.3f} {low} to {high}"


def test_what_helps_the_threat_is_no_protection() -> None:
  report = make_report()
  for metric in report["tables"][0]["metrics"]:
    metric["better"] = "lower"
  page = _render(report, {})
  assert "helps the threat" in page and "pareto-0-worst" not in page
  assert "no protection had an effect" in shown.findings(report)[0]
  page = _render(make_report(), {})
  assert "helps the threat" not in page and "pareto-0-worst" in page
