"""The page of a matrix, read back by an HTML parser and by a browser."""

from __future__ import annotations

import copy
import shlex

import numpy as np
import pytest

from tests.report.test_report import NASTY, Page, squeeze
from udp_jax.matrix import against, catalogue, survival
from udp_jax.matrix.naming import Pair
from udp_jax.metrics import spread
from udp_jax.report import matrix, plots
from udp_jax.report import survival as shown
from udp_jax.report.mosaics import Mosaics

ROWS = ("clean", "random_noise", "foo", "bar")
PURIFIERS = ("none", "jpeg", "impress")
PAIRS = [Pair("foo", "random_noise", "control"), Pair("bar", "random_noise", "control"),
         Pair("bar", "foo", "plain")]  # fmt: skip
ABOUT = {
  "command": "python -m experiments.impress --config=demo --workdir=here",
  "commit": "0123abc",
  "started": "2026-11-22T10:00:00+00:00",
  "ended": "2026-11-22T10:10:00+00:00",
  "seconds": {"purify": 12.5},
  "hardware": {"device": "cpu"},
  "versions": {"jax": "0.10.2"},
}


def _values(row: str, purifier: str) -> np.ndarray:
  """Effects of 0, 0.01 (noise), 1 and 2; JPEG keeps half, IMPRESS a tenth; both move by 0.2."""
  generator = np.random.default_rng([ROWS.index(row), 7])
  effect = {"clean": 0.0, "random_noise": 0.0, "foo": 1.0, "bar": 2.0}[row]
  kept = {"none": 1.0, "jpeg": 0.5, "impress": 0.1}[purifier]
  own = 0.05 * generator.normal(size=(1, 6))
  own -= own.mean() if row == "random_noise" else 0.0
  return kept * (effect + own * (row != "clean")) + (0.2 if purifier != "none" else 0.0)


def make_report(purifiers: tuple[str, ...] = PURIFIERS) -> dict:
  kinds = catalogue.metrics("LPIPS", "FID", 16)
  tables = []
  for threat, kind, key in ((None, "pictures", "latent_distance"), ("img2img", "edits", "ssim")):
    metrics = [m for m in kinds[kind] if m.key in ("perceptual", key)]
    # What protects lowers SSIM.
    sign, better = (-1.0, "lower") if key == "ssim" else (1.0, "higher")
    places = [(row, purifier) for row in ROWS for purifier in purifiers]
    values = {place: sign * _values(*place) for place in places}
    entries = [
      {
        "row": row,
        "purifier": purifier,
        "error": None,
        "metrics": {m.key: spread.summarise(v, draws=20, seed=0) for m in metrics},
      }
      for (row, purifier), v in values.items()
    ]
    if threat and "impress" in purifiers:
      entries[-1] |= {"error": "ValueError: no luck", "metrics": {}}
      del values["bar", "impress"]
    lines = survival.table(values, ROWS[1:], purifiers[1:], clean="clean", none="none", draws=20)
    tables.append(
      {
        "threat": threat,
        "kind": kind,
        "metrics": [m._asdict() for m in metrics],
        "cells": entries,
        "survival": {key: lines},
        "against": {key: against.table(values, PAIRS, purifiers, better=better, draws=20)},
      }
    )
  return {
    "title": "A matrix",
    "notice": "demonstration, not evidence",
    "command": "python -m experiments.impress --config=demo --workdir=WORKDIR",
    "config": {"radius_255": 8},
    "data": {
      "source": "builtin",
      "pictures": 6,
      "holdout": 2,
      "image_size": 8,
      "sha256": "ab",
      "notes": ["a note"],
    },
    "model": "tiny_ldm",
    "networks": {"perceptual": {"label": "LPIPS", "revision": "sha256:12"}},
    "radius_255": 8.0,
    "seeds": [0],
    "rows": [
      {"name": row, "label": row.replace("_", " ").title(), "control": i < 2}
      for i, row in enumerate(ROWS)
    ],
    "purifiers": [{"name": name, "label": name} for name in purifiers],
    "threats": [{"name": "img2img", "label": "img2img", "kind": "edits"}],
    "survival_formula": survival.FORMULA,
    "noise_rule": "an effect within 2 standard errors of zero is none",
    "interval_level": 0.95,
    "tables": tables,
    "failures": [
      {"row": "bar", "purifier": "impress", "threat": "img2img", "seed": 0,
       "error": "ValueError: no luck"}
    ],
  }  # fmt: skip


def make_mosaics() -> Mosaics:
  generator = np.random.default_rng(0)

  def some() -> np.ndarray:
    return generator.integers(0, 256, (4, 8, 8, 3), np.uint8)

  made = {row: {p: {"pictures": some(), "img2img": some()} for p in PURIFIERS} for row in ROWS}
  del made["bar"]["impress"]["img2img"]
  return made


def test_survival_table_says_what_the_report_says() -> None:
  report = make_report()
  page = Page(matrix.render(report, ABOUT, make_mosaics()))
  rows = [[squeeze(cell) for cell in row] for row in page.table]
  start = next(i for i, row in enumerate(rows) if row[0] == "Protection")
  assert rows[start] == ["Protection", "Effect", "jpeg", "impress", "Worst case", "Mean"]
  noise, foo, bar = rows[start + 1 : start + 4]
  assert noise[0] == "Random Noise control" and noise[2:] == ["- no effect"] * 4
  assert foo[0] == "Foo" and foo[1].startswith(("0.9", "1.0"))
  assert foo[2].split()[0] == "0.50" and foo[3].split()[0] == "0.10"
  assert foo[4:] == ["0.10", "0.30"] and bar[4:] == ["0.10", "0.30"]
  # One of its purifiers failed: no worst case to compare with others'.
  edits = start + 1 + rows[start + 1 :].index(rows[start])
  failed = rows[edits + 3]
  assert failed[0] == "Bar"
  assert failed[3] == "- not measured" and failed[4] == "0.50 of 1 purifiers"
  notes = [attrs.get("title") for attrs in page.all("td")]
  assert survival.NO_EFFECT in notes and survival.NOT_MEASURED in notes


def test_page_states_formula_command_failures_and_origin() -> None:
  page = Page(matrix.render(make_report(), ABOUT, make_mosaics()))
  text = squeeze(page.text)
  for words in (
    f"survival = {survival.FORMULA}",
    "an effect within 2 standard errors of zero is none",
    "demonstration, not evidence",
    "--rows=foo --purifiers=impress --threats=img2img --workdir=WORKDIR",
    "bar / impress / img2img, seed 0: ValueError: no luck",
    "python -m experiments.impress --config=demo --workdir=here",
    "0123abc", "2026-11-22T10:00:00+00:00", "sha256:12", "a note", "tiny_ldm", "not made",
    "Img2img (edits), SSIM: 2 of 2 had an effect to lose, 2 beyond their noise control and 1 still",
    "Foo kept most in its worst case, 10 % (after IMPRESS).",
    "Cells that failed and are missing: 1.",
  ):  # fmt: skip
    assert words in text, words


def test_mosaics_hold_the_pictures() -> None:
  mosaics = make_mosaics()
  page = Page(matrix.render(make_report(), ABOUT, mosaics))
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
  page = Page(matrix.render(report, ABOUT | {"hardware": {NASTY: NASTY}}, make_mosaics()))
  assert [tag for tag, _ in page.elements].count("script") == 1
  assert all(attrs["src"].startswith("data:") for attrs in page.all("img"))
  assert NASTY in page.text


def test_nothing_measured_still_makes_a_page() -> None:
  report = make_report()
  for table in report["tables"]:
    table["survival"], table["against"], table["metrics"] = {}, {}, []
    for entry in table["cells"]:
      entry["error"], entry["metrics"] = "not made", {}
  page = Page(matrix.render(report, ABOUT, {}))
  assert "pareto" not in page.ids() and {"survival", "cells"} <= set(page.ids())
  assert shown.format_survival(report) == "nothing was measured"


def test_same_input_same_page() -> None:
  report, mosaics = make_report(), make_mosaics()
  first = matrix.render(report, ABOUT, mosaics)
  assert matrix.render(copy.deepcopy(report), ABOUT, mosaics) == first


def test_plain_table() -> None:
  head, rule, noise, foo, *_ = shown.format_survival(make_report()).split("\n")
  assert head.split()[-4:] == ["effect", "worst", "after", "mean"]
  assert set(rule) <= {"-", " "} and len(rule) == len(head)
  assert noise.split()[-3:] == ["-", "-", "-"]
  assert foo.split()[-3:] == ["0.10", "IMPRESS", "0.30"]


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


@pytest.mark.slow
def test_page_works_in_a_browser(tmp_path, open_in_browser) -> None:
  page = tmp_path / "report.html"
  matrix.write_report(page, make_report(), ABOUT, make_mosaics())
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
  page = Page(matrix.render(alone, ABOUT, {}))
  rows = [[squeeze(cell) for cell in row] for row in page.table]
  assert ["Protection", "Effect"] in rows
  assert not {"Worst case", "Mean"} & {cell for row in rows for cell in row}
  assert "survival =" not in squeeze(page.text)
  head, *_ = shown.format_survival(alone).split("\n")
  assert head.split()[-1] == "effect"


def test_differences_are_those_of_the_report() -> None:
  report = make_report()
  page = Page(matrix.render(report, ABOUT, {}))
  rows = [[squeeze(cell) for cell in row] for row in page.table]
  start = rows.index(["Protection", "minus", "as it is", "jpeg", "impress"])
  foo, _, adaptive = rows[start + 1 : start + 4]
  assert foo[:2] == ["Foo", "Random Noise"] and adaptive[:2] == ["Bar", "Foo"]
  [line] = [x for x in report["tables"][0]["against"]["latent_distance"] if x["kind"] == "plain"]
  found = line["purifiers"]["jpeg"]
  assert found["mean"] == pytest.approx(0.5, abs=0.1) and shown.side(found) == 1
  low, high = (f"{end:.3f}" for end in found["interval"])
  assert adaptive[3] == f"{found['mean']:.3f} {low} to {high}"


def test_a_run_that_tells_nothing_says_so() -> None:
  report = make_report()
  for table in report["tables"]:
    for lines in table["survival"].values():
      for line in lines:
        line["worst"] = None
  said = shown.findings(report)
  assert len(said) == 2
  assert all("so the run is too small, or the protections too weak" in line for line in said)


def test_what_helps_the_threat_is_no_protection() -> None:
  report = make_report()
  for metric in report["tables"][0]["metrics"]:
    metric["better"] = "lower"
  page = matrix.render(report, ABOUT, {})
  assert "helps the threat" in page and "pareto-0-worst" not in page
  assert "no protection had an effect" in shown.findings(report)[0]
  page = matrix.render(make_report(), ABOUT, {})
  assert "helps the threat" not in page and "pareto-0-worst" in page


@pytest.mark.parametrize(
  ("interval", "side"), [([0.1, 0.2], 1), ([-0.2, -0.1], -1), ([-0.1, 0.1], 0), (None, 0)]
)
def test_what_is_surely_above_zero(interval: list[float] | None, side: int) -> None:
  assert shown.side({"interval": interval}) == side
