"""The report of a matrix as one self-contained page.

Like the page of a study (`html`), it loads nothing from elsewhere; figures are inline SVG.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from udp_jax.data.marks import CLEAN
from udp_jax.metrics.survival import SELECTION
from udp_jax.report import mosaics as mosaics_lib
from udp_jax.report import plots, survival, text
from udp_jax.report.mosaics import Mosaics
from udp_jax.report.names import NONE
from udp_jax.runtime import files


def write_report(
  path: str | os.PathLike[str],
  report: Mapping[str, Any],
  about: Mapping[str, Any],
  mosaics: Mosaics,
) -> None:
  """Writes the page; the file is written whole or not at all.

  Args:
    path: the HTML file to write.
    report: the result of `matrix.results.build`.
    about: how the report was made: "command", "commit", "started", "ended", "seconds", "hardware",
      "versions"; and "example": the command that makes a single cell (`matrix.results.example`).
    mosaics: pictures of the cells, from `matrix.mosaics.pictures`; may be empty.

  Raises:
    OutputError: the file cannot be written.
  """
  files.write_bytes(path, render(report, about, mosaics).encode())


def render(report: Mapping[str, Any], about: Mapping[str, Any], mosaics: Mosaics) -> str:
  """Returns the page of `write_report` as a string."""
  series = plots.assign_series(report["rows"])
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template("matrix.html.j2").render(
    report=report,
    about=about,
    series=series,
    purified=len(report["purifiers"]) > 1,
    budget=text.budget(report),
    summary=survival.summary(report),
    findings=survival.findings(report),
    num_protections=sum(not row["control"] for row in report["rows"]),
    survival=[survival.block(report, *place, series) for place in survival.primary(report)],
    more=[survival.block(report, *place, series) for place in survival.others(report)],
    pareto=_pareto(report, series),
    visible=_visible(report, series),
    cells=[_cells(report, table, series) for table in report["tables"]],
    gallery=mosaics_lib.gallery(report, mosaics, series),
    config_text=json.dumps(text.jsonable(report["config"]), indent=2, sort_keys=True),
    missing=text.MISSING,
    selection_note=SELECTION,
    interval=f"{100 * report['interval_level']:g} %",
  )


def _pareto(report: Mapping[str, Any], series: Mapping[str, plots.Series]) -> list[dict[str, Any]]:
  """Two figures for each table about its first survival: the surviving share, and the effect."""
  own = report["tables"][0]
  known = [metric["key"] for metric in own["metrics"]]
  key = next((name for name in ("perceptual", "rmse") if name in known), None)
  if key is None:
    return []
  label = f"{survival.metric_of(own, key)['label']} from the clean picture (less is less visible)"
  seen = {
    entry["row"]: entry["metrics"][key]["mean"]
    for entry in own["cells"]
    if entry["purifier"] == NONE and entry["error"] is None
  }
  first: dict[int, str] = {}
  for number, metric in survival.primary(report):
    first.setdefault(number, metric)
  figures = []
  for number, metric in first.items():
    table = report["tables"][number]
    for field, what in (
      ("worst", "Survival, worst case"),
      ("kept_worst", "Effect left, worst case"),
    ):
      points = [
        (line["row"], seen[line["row"]], line[field])
        for line in table["survival"][metric]
        if survival.is_complete(line)
        and line[field] is not None
        # Skip rows that help the attacker: high survival is bad there.
        and not survival.is_reversed(line, survival.metric_of(table, metric))
        and seen.get(line["row"]) is not None
      ]
      if len(points) < 2:
        continue
      svg = plots.pareto(points, series, f"pareto-{number}-{field}", xlabel=label, ylabel=what)
      figures.append(
        {
          "title": f"{survival.subject(table)}: {survival.metric_of(table, metric)['label']}",
          "caption": what,
          "svg": Markup(svg),
        }
      )
  return figures


def _visible(report: Mapping[str, Any], series: Mapping[str, plots.Series]) -> dict[str, Any]:
  """Metrics of the pictures of every row before any purifier."""
  table = report["tables"][0]
  lines = [
    {"series": series[entry["row"]], "numbers": _numbers(table, entry), "error": entry["error"]}
    for entry in table["cells"]
    if entry["purifier"] == NONE and entry["row"] != CLEAN
  ]
  # Shown only if budgets differ; otherwise the head of the page states the one budget.
  budgets = {}
  if len(text.radii(report)) > 1:
    budgets = {row["name"]: row["radius_255"] for row in report["rows"] if row["name"] != CLEAN}
  return {"metrics": table["metrics"], "lines": lines, "budgets": budgets}


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
  return {"subject": survival.subject(table), "metrics": table["metrics"], "lines": lines}


def _numbers(table: Mapping[str, Any], entry: Mapping[str, Any]) -> list[dict[str, str]]:
  shown = []
  for metric in table["metrics"]:
    found = entry["metrics"].get(metric["key"], {})
    spread = found.get("std") if found.get("seed_std") is None else found["seed_std"]
    shown.append(
      {
        "sort": survival.sortable(found.get("mean")),
        "mean": text.format_number(found.get("mean"), metric["digits"]),
        "std": "" if spread is None else text.format_number(spread, metric["digits"]),
      }
    )
  return shown
