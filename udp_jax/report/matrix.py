"""The report of a matrix as one self-contained page, and its survival table in plain text.

Like the page of a study (`html`): nothing is loaded from elsewhere, figures are inline SVG.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from udp_jax.data import files, manifest
from udp_jax.matrix import purifying
from udp_jax.matrix.catalogue import PICTURES
from udp_jax.matrix.plan import NONE, Cell
from udp_jax.matrix.results import reproducing
from udp_jax.report import html, plots, text
from udp_jax.study import CLEAN

# Pictures of a mosaic, and its widest picture in pixels: a page must stay small enough to send.
_SHOWN = 4
_WIDEST = 128
_GOOD, _BAD = 2 / 3, 1 / 3

Mosaics = dict[str, dict[str, dict[str, np.ndarray]]]


def pictures(report: Mapping[str, Any], workdir: Path) -> Mosaics:
  """What the page shows: row -> purifier -> "pictures" or a threat -> uint8 (n, H, W, 3).

  The same pictures everywhere, spread evenly over the set; what is not there is left out.
  """
  found: Mosaics = {}
  for row in [entry["name"] for entry in report["rows"]]:
    found[row] = {}
    for purifier in [entry["name"] for entry in report["purifiers"]]:
      cell = Cell(row, purifier)
      shown = {PICTURES: _read(purifying.folder_of(cell, workdir), spread=True)}
      for threat in report["threats"]:
        made = cell._replace(threat=threat["name"], seed=report["seeds"][0])
        spread = threat["kind"] == "edits"
        shown[threat["name"]] = _read(made.folder(workdir) / threat["kind"], spread=spread)
      found[row][purifier] = {name: images for name, images in shown.items() if images is not None}
  return found


def _read(folder: Path, *, spread: bool) -> np.ndarray | None:
  if not manifest.is_complete(folder):
    return None
  images = manifest.read_folder(folder)[0].images
  count = min(_SHOWN, len(images))
  # Samples belong to no picture; edits and pictures do, and the set's order follows classes.
  return images[np.linspace(0, len(images) - 1, count, dtype=int)] if spread else images[:count]


def write_report(
  path: str | os.PathLike[str],
  report: Mapping[str, Any],
  about: Mapping[str, Any],
  mosaics: Mosaics,
) -> None:
  """Writes the page, whole or not at all.

  Args:
    path: the HTML file.
    report: of `matrix.results.build`.
    about: of this run: "command", "commit", "started", "ended", "seconds", "hardware", "versions".
    mosaics: of `pictures`; may be empty.

  Raises:
    OutputError: the file cannot be written.
  """
  files.write_bytes(path, render(report, about, mosaics).encode())


def render(report: Mapping[str, Any], about: Mapping[str, Any], mosaics: Mosaics) -> str:
  """The page of `write_report` as a string."""
  series = plots.assign_series(report["rows"])
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  chosen = primary(report)
  return environment.get_template("matrix.html.j2").render(
    report=report,
    about=about,
    series=series,
    summary=summary(report),
    survival=[_survival(report, *place, series) for place in chosen],
    more=[_survival(report, *place, series) for place in _others(report, chosen)],
    pareto=_pareto(report, chosen, series),
    visible=_visible(report, series),
    cells=[_cells(report, table, series) for table in report["tables"]],
    gallery=_gallery(report, mosaics, series),
    example=_example(report),
    config_text=json.dumps(text.jsonable(report["config"]), indent=2, sort_keys=True),
    missing=text.MISSING,
    interval=f"{100 * report['interval_level']:g} %",
  )


def primary(report: Mapping[str, Any]) -> list[tuple[int, str]]:
  """The survival that is shown first: (number of the table, metric), one for every table."""
  chosen = []
  for number, table in enumerate(report["tables"]):
    keys = [m["key"] for m in table["metrics"] if m["key"] in table["survival"]]
    if keys:
      chosen.append((number, keys[0]))
  return chosen


def _others(report: Mapping[str, Any], chosen: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
  return [
    (number, key)
    for number, table in enumerate(report["tables"])
    for key in table["survival"]
    if (number, key) not in chosen
  ]


def _subject(table: Mapping[str, Any]) -> str:
  """What a table is about, in words."""
  if table["threat"] is None:
    return "The pictures themselves"
  name = table["threat"].replace("_", " ")
  return f"{name[:1].upper()}{name[1:]} ({table['kind']})"


def _metric(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
  return next(metric for metric in table["metrics"] if metric["key"] == key)


def summary(report: Mapping[str, Any]) -> str:
  """What was done and what the survival tables say; nothing that they do not say."""
  names = {row["name"]: row["label"] for row in report["rows"]}
  count = sum(not row["control"] for row in report["rows"])
  said = (
    f"{count} protections of {report['data']['pictures']} pictures, each within "
    f"{report['radius_255']:g} of 255 levels, were taken through {len(report['purifiers']) - 1} "
    f"purifiers and {len(report['threats'])} threats. "
  )
  if len(report["purifiers"]) == 1:
    said += "Nothing was purified, so the tables show effects and no survival. "
    return (said + _failed(report)).strip()
  said += "Survival is the share of a protection's effect that is left after a purifier. "
  for number, key in primary(report):
    table = report["tables"][number]
    known = [line for line in table["survival"][key] if line["worst"] is not None]
    # A worst case over fewer purifiers is not the same thing.
    own = [line for line in known if not _is_control(report, line["row"]) and _is_complete(line)]
    where = f"{_subject(table)}, {_metric(table, key)['label']}"
    if not own:
      said += f"{where}: no protection had an effect that could be told from noise everywhere. "
      continue
    best = max(own, key=lambda line: line["worst"])
    said += (
      f"{where}: {names[best['row']]} kept most in its worst case, "
      f"{100 * best['worst']:.0f} % (after {best['worst_purifier'].replace('_', ' ')}); "
      f"{len(own)} of {count} had an effect to lose. "
    )
  return (said + _failed(report)).strip()


def _failed(report: Mapping[str, Any]) -> str:
  count = len(report["failures"])
  return f"Cells that failed and are missing: {count}." if count else ""


def _is_complete(line: Mapping[str, Any]) -> bool:
  return line["judged"] == line["purifiers_count"]


def _is_control(report: Mapping[str, Any], row: str) -> bool:
  return next(entry["control"] for entry in report["rows"] if entry["name"] == row)


def _survival(
  report: Mapping[str, Any], number: int, key: str, series: Mapping[str, plots.Series]
) -> dict[str, Any]:
  table = report["tables"][number]
  metric = _metric(table, key)
  purifiers = [entry for entry in report["purifiers"] if entry["name"] != NONE]
  lines = []
  for line in table["survival"][key]:
    shown = [_ratio(line["purifiers"][entry["name"]]) for entry in purifiers]
    lines.append(
      {
        "series": series[line["row"]],
        "effect": text.format_number(line["effect"], metric["digits"]),
        "noise": text.format_number(line["noise"], metric["digits"]),
        "effect_sort": _sortable(line["effect"]),
        "purifiers": shown,
        "worst": _over_purifiers(line, "worst"),
        "mean": _over_purifiers(line, "mean"),
      }
    )
  return {
    "id": f"survival-{number}-{key}",
    "subject": _subject(table),
    "metric": metric,
    "purifiers": purifiers,
    "lines": lines,
  }


def _over_purifiers(line: Mapping[str, Any], field: str) -> dict[str, Any]:
  """A cell over all purifiers; says so where some of them could not be judged."""
  made = _ratio({"value": line[field], "interval": None, "reason": line["reason"]})
  if line[field] is not None and not _is_complete(line):
    made |= {"range": f"of {line['judged']} purifiers", "side": ""}
  return made


def _ratio(found: Mapping[str, Any]) -> dict[str, Any]:
  value = found["value"]
  if value is None:
    return {"text": text.MISSING, "sort": "", "side": "", "note": found["reason"], "range": ""}
  side = "kept" if value >= _GOOD else "lost" if value <= _BAD else ""
  interval = found["interval"]
  limits = "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"
  return {
    "text": text.format_number(value, 2),
    "sort": repr(value),
    "side": side,
    "note": "",
    "range": limits,
  }


def _sortable(value: float | None) -> str:
  return "" if value is None else repr(value)


def _pareto(
  report: Mapping[str, Any],
  chosen: Sequence[tuple[int, str]],
  series: Mapping[str, plots.Series],
) -> list[dict[str, Any]]:
  """For every primary survival, one figure of shares and one of the effect itself."""
  own = report["tables"][0]
  known = [metric["key"] for metric in own["metrics"]]
  key = next((name for name in ("perceptual", "rmse") if name in known), None)
  if key is None:
    return []
  label = f"{_metric(own, key)['label']} from the clean picture (less is less visible)"
  seen = {
    entry["row"]: entry["metrics"][key]["mean"]
    for entry in own["cells"]
    if entry["purifier"] == NONE and entry["error"] is None
  }
  figures = []
  for number, metric in chosen:
    table = report["tables"][number]
    for field, what in (
      ("worst", "Survival, worst case"),
      ("kept_worst", "Effect left, worst case"),
    ):
      points = [
        (line["row"], seen[line["row"]], line[field])
        for line in table["survival"][metric]
        if _is_complete(line) and line[field] is not None and seen.get(line["row"]) is not None
      ]
      if len(points) < 2:
        continue
      svg = plots.pareto(points, series, f"pareto-{number}-{field}", xlabel=label, ylabel=what)
      figures.append(
        {
          "title": f"{_subject(table)}: {_metric(table, metric)['label']}",
          "caption": what,
          "svg": Markup(svg),
        }
      )
  return figures


def _visible(report: Mapping[str, Any], series: Mapping[str, plots.Series]) -> dict[str, Any]:
  """The pictures of every row before any purifier."""
  table = report["tables"][0]
  lines = [
    {"series": series[entry["row"]], "numbers": _numbers(table, entry), "error": entry["error"]}
    for entry in table["cells"]
    if entry["purifier"] == NONE and entry["row"] != CLEAN
  ]
  return {"metrics": table["metrics"], "lines": lines}


def _cells(
  report: Mapping[str, Any], table: Mapping[str, Any], series: Mapping[str, plots.Series]
) -> dict[str, Any]:
  labels = {entry["name"]: entry["label"] for entry in report["purifiers"]}
  lines = [
    {
      "series": series[entry["row"]],
      "purifier": labels[entry["purifier"]],
      "numbers": _numbers(table, entry),
      "error": entry["error"],
    }
    for entry in table["cells"]
  ]
  return {"subject": _subject(table), "metrics": table["metrics"], "lines": lines}


def _numbers(table: Mapping[str, Any], entry: Mapping[str, Any]) -> list[dict[str, str]]:
  shown = []
  for metric in table["metrics"]:
    found = entry["metrics"].get(metric["key"], {})
    spread = found.get("std") if found.get("seed_std") is None else found["seed_std"]
    shown.append(
      {
        "sort": _sortable(found.get("mean")),
        "mean": text.format_number(found.get("mean"), metric["digits"]),
        "std": "" if spread is None else text.format_number(spread, metric["digits"]),
      }
    )
  return shown


def _gallery(
  report: Mapping[str, Any], mosaics: Mosaics, series: Mapping[str, plots.Series]
) -> list[dict[str, Any]]:
  """For every row a grid: a column a purifier, a line for the pictures and for each threat."""
  lines = [PICTURES, *(threat["name"] for threat in report["threats"])]
  groups = []
  for row, by_purifier in mosaics.items():
    columns = []
    for purifier in report["purifiers"]:
      shown = by_purifier.get(purifier["name"], {})
      tiles = [{"line": line, "tile": _tile(shown.get(line))} for line in lines]
      title = "as it is" if purifier["name"] == NONE else purifier["label"]
      columns.append({"title": title, "tiles": tiles})
    groups.append({"series": series[row], "columns": columns})
  return groups


def _tile(images: np.ndarray | None) -> dict[str, Any] | None:
  if images is None or not len(images):
    return None
  width = images.shape[2]
  if width > _WIDEST:
    height = round(images.shape[1] * _WIDEST / width)
    small = [
      Image.fromarray(image).resize((_WIDEST, height), Image.Resampling.LANCZOS) for image in images
    ]
    images = np.stack([np.asarray(image) for image in small])
  tiled = html.tile_images(images)
  return {"uri": html.data_uri(tiled), "width": tiled.shape[1], "height": tiled.shape[0]}


def _example(report: Mapping[str, Any]) -> str:
  """The command that makes one cell alone."""
  row = next((r["name"] for r in report["rows"] if not r["control"]), report["rows"][-1]["name"])
  threat = report["threats"][0]["name"] if report["threats"] else None
  return reproducing(report["command"], Cell(row, report["purifiers"][-1]["name"], threat))


def format_survival(report: Mapping[str, Any]) -> str:
  """Worst case and mean survival of every row in plain text, a block for every table."""
  names = {row["name"]: row["label"] for row in report["rows"]}
  blocks = []
  for number, key in primary(report):
    table = report["tables"][number]
    head = [
      f"{_subject(table)}: {_metric(table, key)['label']}",
      "effect",
      "worst",
      "after",
      "mean",
    ]
    digits = _metric(table, key)["digits"]
    lines = [
      [
        names[line["row"]],
        text.format_number(line["effect"], digits),
        text.format_number(line["worst"], 2),
        (line["worst_purifier"] or text.MISSING).replace("_", " "),
        text.format_number(line["mean"], 2),
      ]
      for line in table["survival"][key]
    ]
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    rule = ["-" * width for width in widths]
    blocks.append(
      "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))])
        for line in [head, rule, *lines]
      )
    )
  return "\n\n".join(blocks) or "nothing was measured"
