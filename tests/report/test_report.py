"""The report page read back by an HTML parser, by Pillow and by a browser."""

from __future__ import annotations

import base64
import copy
import http.server
import io
import json
import threading
from collections import Counter
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from PIL import Image

from udp_jax import errors
from udp_jax.report import html, plots, text

NASTY = "<script>alert('$x_1$')</script>\"&amp; <img src=x onerror=alert(1)>"


def make_report() -> dict:
  def metrics(fd, std, psnr, loss):
    return {
      "fd": {"mean": fd, "std": std, "values": [fd - std, fd + std]},
      "psnr": {"mean": psnr, "std": None, "values": [psnr]},
      "loss": {"mean": loss, "std": None, "values": []},
    }

  def victim(end):
    steps = list(range(0, 101, 5))
    mean = [end + 3.0 * 0.5 ** (step / 2) for step in steps]
    low, high = [0.9 * value for value in mean], [1.1 * value for value in mean]
    return {"steps": steps, "mean": mean, "low": low, "high": high}

  return {
    "title": "A study of pictures",
    "summary": "Pictures were protected and learned from.",
    "notice": "demonstration, not evidence",
    "command": "python -m experiments.eudp --config=demo",
    "commit": "0123abc",
    "date": "2026-11-22",
    "seeds": [3, 4],
    "hardware": {"device": "cpu"},
    "versions": {"jax": "0.10.2"},
    "config": {"radius_255": 16, "model": {"channels": (32, 64)}},
    "data": {
      "source": "builtin",
      "train_images": 120,
      "holdout_images": 60,
      "image_size": 4,
      "notes": ["a note on the data"],
    },
    "radius_255": 16,
    "feature_label": "FD-EffLite0",
    "columns": [
      {"key": "fd", "label": "FD", "help": "distance", "better": "higher", "digits": 1},
      {"key": "psnr", "label": "PSNR", "help": "similarity", "better": "lower", "digits": 2},
      {"key": "loss", "label": "Final loss on it", "help": "loss", "better": None, "digits": 4},
    ],
    "rows": [
      {"name": "clean", "label": "Clean", "control": True,
       "metrics": metrics(100.0, 2.0, float("nan"), 0.05)},
      {"name": "noise", "label": "Random noise", "control": True,
       "metrics": metrics(90.5, 0.25, 27.0, 0.0625)},
      {"name": "eudp", "label": "EUDP", "control": False,
       "metrics": metrics(1000.0, 12.0, 26.123, None)},
    ],
    "curves": {
      "victims": {"clean": victim(0.05), "eudp": victim(0.09)},
      "protection": {
        "eudp": {"round": [0, 1, 2], "min_loss": [0.3, None, 0.1], "max_loss": [0.2, 0.3, 0.4]}
      },
    },
    "timesteps": {"eudp": [0.5, 0.3, 0.2]},
  }  # fmt: skip


def make_assets() -> dict:
  rng = np.random.default_rng(0)
  clean = rng.integers(0, 256, (3, 4, 5, 3), np.uint8)
  change = rng.integers(-16, 17, clean.shape)
  return {
    "clean": clean,
    "protected": {"eudp": np.clip(clean + change, 0, 255).astype(np.uint8)},
    "samples": {
      "eudp": rng.integers(0, 256, (5, 4, 4, 3), np.uint8),
      "clean": rng.integers(0, 256, (4, 4, 4, 3), np.uint8),
    },
  }


class Page(HTMLParser):
  """What a page holds: elements, the main table's texts, and its visible text."""

  def __init__(self, source: str):
    super().__init__(convert_charrefs=True)
    self.elements: list[tuple[str, dict]] = []
    self.table: list[list[str]] = []
    self.text = ""
    self._cell = False
    self.feed(source)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag == "tr":
      self.table.append([])
    if tag in ("td", "th"):
      self.table[-1].append("")
      self._cell = True

  def handle_endtag(self, tag):
    if tag in ("td", "th"):
      self._cell = False

  def handle_data(self, data):
    self.text += data
    if self._cell:
      self.table[-1][-1] += data

  def all(self, tag):
    return [attrs for name, attrs in self.elements if name == tag]

  def ids(self):
    return [attrs["id"] for _, attrs in self.elements if "id" in attrs]

  def pixels(self, alt):
    [uri] = [attrs["src"] for attrs in self.all("img") if attrs["alt"] == alt]
    prefix = "data:image/png;base64,"
    assert uri.startswith(prefix)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri[len(prefix) :]))))


@pytest.fixture(scope="module")
def source() -> str:
  """The page of `make_report` and `make_assets`, which takes a second to draw."""
  return html.render(make_report(), make_assets())


@pytest.fixture(scope="module")
def whole(source) -> Page:
  return Page(source)


def squeeze(cell: str) -> str:
  return " ".join(cell.split())


def test_table_holds_every_row_and_column(whole):
  assert [[squeeze(cell) for cell in row] for row in whole.table] == [
    ["Training set", "FD▲ higher is better", "PSNR▼ lower is better", "Final loss on it"],
    ["Clean control", "100.0 ± 2.0", "-", "0.0500"],
    ["Random noise control", "90.5 ± 0.2", "27.00", "0.0625"],
    ["EUDP", "1000.0 ± 12.0", "26.12", "-"],
  ]
  best = [attrs["data-sort"] for attrs in whole.all("td") if attrs.get("class") == "best"]
  assert best == ["26.123", "1000.0"] or best == ["1000.0", "26.123"]


def test_page_tells_where_the_numbers_come_from(whole):
  assert [tag for tag, _ in whole.elements].count("title") == 1
  for words in (
    "A study of pictures", "Pictures were protected and learned from.",
    "demonstration, not evidence", "python -m experiments.eudp --config=demo", "0123abc",
    "2026-11-22", "3, 4", "cpu", "0.10.2", "120", "60", "±16 of 255", "a note on the data",
    "FD-EffLite0 is not FID", '"channels": [', "distance", "similarity", "loss",
  ):  # fmt: skip
    assert words in whole.text, words


def test_images_decode_to_the_right_pixels(whole):
  assets = make_assets()
  protected = assets["protected"]["eudp"]
  assert len(whole.all("img")) == 3 * 3 + 2
  for i in range(3):
    np.testing.assert_array_equal(whole.pixels(f"Clean, picture {i + 1}"), assets["clean"][i])
    shown = whole.pixels(f"EUDP, protected, picture {i + 1}")
    np.testing.assert_array_equal(shown, protected[i])
    delta = whole.pixels(f"EUDP, amplified change, picture {i + 1}").astype(float)
    expected = 128.0 + 7 * (protected[i].astype(float) - assets["clean"][i])
    np.testing.assert_array_equal(delta, expected)
  assert "7 times amplified" in squeeze(whole.text)

  # Five samples of 4x4: three columns, two rows, gaps of one transparent pixel, the last one free.
  grid = whole.pixels("5 pictures generated by the model trained on: EUDP")
  assert grid.shape == (9, 14, 4)
  np.testing.assert_array_equal(grid[0:4, 10:14, :3], assets["samples"]["eudp"][2])
  np.testing.assert_array_equal(grid[5:9, 5:9, :3], assets["samples"]["eudp"][4])
  assert (grid[5:9, 5:9, 3] == 255).all()
  assert not grid[4].any() and not grid[:, 4].any() and not grid[5:9, 10:].any()


def test_hostile_texts_stay_texts(whole):
  report = make_report()
  for key in ("title", "summary", "notice", "command", "commit", "feature_label"):
    report[key] = NASTY
  report["columns"][0]["label"] = report["columns"][0]["help"] = NASTY
  report["rows"][2]["label"] = report["data"]["source"] = NASTY
  report["hardware"] = {NASTY: NASTY}
  report["config"] = {NASTY: [NASTY]}
  page = Page(html.render(report, make_assets()))
  assert Counter(tag for tag, _ in page.elements) == Counter(tag for tag, _ in whole.elements)
  assert not [attrs for _, attrs in page.elements if any(key.startswith("on") for key in attrs)]
  assert page.text.count(NASTY) >= 12
  assert squeeze(page.table[3][0]) == NASTY
  # In a figure the label is cut short, and a "$" is no formula.
  assert NASTY[:27] + "…" in page.text


def test_nothing_is_loaded_and_no_id_occurs_twice(whole):
  used = []
  for tag, attrs in whole.elements:
    assert tag not in ("iframe", "object", "embed")
    for key in ("src", "href", "xlink:href", "srcset", "action"):
      if key in attrs:
        assert attrs[key].startswith(("data:", "#")), attrs[key]
        used += [attrs[key][1:]] if attrs[key].startswith("#") else []
    if "clip-path" in attrs:
      used.append(attrs["clip-path"][len("url(#") : -1])
  ids = whole.ids()
  assert len(ids) == len(set(ids))
  assert used and set(used) <= set(ids)
  assert len(whole.all("style")) == 1


def test_same_input_gives_the_same_bytes(source, tmp_path):
  report, assets = make_report(), make_assets()
  before = copy.deepcopy(report)
  with matplotlib.rc_context({"axes.linewidth": 9.0, "axes.grid": False, "svg.hashsalt": None}):
    html.write_report(tmp_path / "b.html", report, assets)
  assert (tmp_path / "b.html").read_text("utf-8") == source
  # Compared as JSON because NaN differs from itself.
  assert json.dumps(report) == json.dumps(before)


def test_page_from_the_stored_json_is_the_same(source, tmp_path):
  text.write_json(tmp_path / "report.json", make_report())
  stored = json.loads((tmp_path / "report.json").read_text())
  assert html.render(stored, make_assets()) == source


@pytest.mark.parametrize(
  ("drop", "section"),
  [
    (["curves", "timesteps"], "curves"),
    (["clean", "protected"], "pictures"),
    (["samples"], "samples"),
    (["notice"], None),
  ],
)
def test_optional_parts_vanish(drop, section, whole):
  report, assets = make_report(), make_assets()
  for key in drop:
    report.pop(key, None)
    assets.pop(key, None)
  page = Page(html.render(report, assets))
  if section is None:
    assert any(attrs.get("role") == "note" for _, attrs in whole.elements)
    assert not any(attrs.get("role") == "note" for _, attrs in page.elements)
  else:
    assert section in whole.ids() and section not in page.ids()
  assert {"results", "metrics", "provenance"} <= set(page.ids())


def test_some_curves_without_the_others():
  report = make_report()
  del report["curves"]["victims"], report["timesteps"]
  del report["curves"]["protection"]["eudp"]["max_loss"]
  page = Page(html.render(report, {}))
  assert "the model learns" in page.text
  for absent in ("Loss of the trained models", "the change fights back", "noise schedule"):
    assert absent not in page.text


def test_steep_start_of_a_loss_is_cut_and_said_so(whole):
  report = make_report()
  assert "is cut off" in whole.text
  for curve in report["curves"]["victims"].values():
    curve.update(mean=[0.1] * 21, low=[0.09] * 21, high=[0.11] * 21)
  assert "is cut off" not in Page(html.render(report, {})).text


def test_no_rows_and_no_columns_still_make_a_page():
  report = make_report()
  report["rows"], report["columns"] = [], []
  page = Page(html.render(report, make_assets()))
  assert "metrics" not in page.ids()
  assert len(page.all("img")) == 11


@pytest.mark.parametrize("key", ["title", "rows", "radius_255", "hardware"])
def test_missing_key_is_named(key):
  report = make_report()
  del report[key]
  with pytest.raises(ValueError, match=f"lacks {key}"):
    html.render(report, {})


@pytest.mark.parametrize(
  ("assets", "message"),
  [
    ({"clean": np.zeros((1, 4, 4, 3))}, "clean must be uint8"),
    ({"samples": {"eudp": np.zeros((4, 4, 3), np.uint8)}}, "samples 'eudp' must be uint8"),
    ({"protected": {"eudp": np.zeros((1, 4, 4, 3), np.uint8)}}, "without the"),
    (
      {
        "clean": np.zeros((1, 4, 4, 3), np.uint8),
        "protected": {"eudp": np.zeros((2, 4, 4, 3), np.uint8)},
      },
      "protected 'eudp' has shape",
    ),
  ],
)
def test_wrong_images_are_refused(assets, message):
  with pytest.raises(ValueError, match=message):
    html.render(make_report(), assets)


@pytest.mark.parametrize(("radius_255", "factor"), [(16, 7), (8, 15), (4, 31), (0.5, 254), (0, 1)])
def test_amplified_budget_fills_but_never_overflows(radius_255, factor):
  assert html.delta_factor(radius_255) == factor
  assert 0 <= 128 - factor * radius_255 and 128 + factor * radius_255 <= 255


def test_amplified_delta_is_cut_to_8_bits():
  clean = np.array([0, 255, 100], np.uint8)
  protected = np.array([255, 0, 98], np.uint8)
  np.testing.assert_array_equal(html.amplified_delta(clean, protected, 7), [255, 0, 114])


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


def test_failed_write_leaves_nothing_behind(tmp_path):
  target = tmp_path / "report.html"
  (target / "sub").mkdir(parents=True)
  with pytest.raises(errors.OutputError, match=r"cannot write .*report\.html"):
    html.write_report(target, make_report(), {})
  assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
  with pytest.raises(errors.OutputError, match="cannot write"):
    text.write_json("/dev/null/report.json", {})


@pytest.mark.slow
def test_page_works_in_a_browser(source, tmp_path, open_in_browser):
  page = tmp_path / "report.html"
  page.write_text(source, "utf-8")
  probe = """
    const table = document.querySelector("#main-table");
    const order = () => [...table.tBodies[0].rows].map(row => row.dataset.row).join(" ");
    const click = index => {
      const head = table.tHead.rows[0].cells[index];
      head.querySelector("button").click();
      return [order(), head.getAttribute("aria-sort")];
    };
    return {
      widths: [...document.images].map(image => image.naturalWidth),
      rendering: getComputedStyle(document.images[0]).imageRendering,
      overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
      figures: [...document.querySelectorAll("svg[role=img]")].map(svg => svg.clientHeight > 50),
      stroke: getComputedStyle(document.querySelector("#victims-figure_1 text")).fill,
      ink: getComputedStyle(document.body).color,
      fd: [click(1), click(1), click(1)],
      psnr: [click(2), click(2)],
      name: [click(0), click(0)],
    };"""
  findings = open_in_browser(page, probe)
  assert findings["errors"] == []
  # The page itself is not among the resources; anything else would be.
  assert findings["requests"] == []
  result = findings["result"]
  assert result["widths"] == [5] * 9 + [9, 14]
  assert result["rendering"] == "pixelated"
  assert result["overflow"] == 0
  assert result["figures"] == [True] * (3 + 4)
  assert result["stroke"] == result["ink"]
  assert result["fd"] == [
    ["eudp clean noise", "descending"],
    ["noise clean eudp", "ascending"],
    ["clean noise eudp", None],
  ]
  # "clean" has no PSNR and stays last both ways.
  assert result["psnr"] == [["noise eudp clean", "descending"], ["eudp noise clean", "ascending"]]
  assert result["name"] == [["clean eudp noise", "ascending"], ["noise eudp clean", "descending"]]


class _Nothing(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    self.send_error(404)

  def log_message(self, *args):
    pass


@pytest.mark.slow
def test_browser_notices_what_is_wrong(tmp_path, open_in_browser):
  with http.server.HTTPServer(("127.0.0.1", 0), _Nothing) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = tmp_path / "bad.html"
    page.write_text(
      "<!DOCTYPE html><html><head></head><body>"
      f'<img src="http://127.0.0.1:{server.server_port}/missing.png">'
      '<script>console.error("complaint"); undefinedFunction();</script></body></html>'
    )
    findings = open_in_browser(page, "return document.images[0].naturalWidth")
    server.shutdown()
  assert findings["result"] == 0
  assert any("complaint" in error for error in findings["errors"])
  assert any("undefinedFunction" in error for error in findings["errors"])
  assert any("missing.png" in error for error in findings["errors"])
  assert any("missing.png" in address for address in findings["requests"])
