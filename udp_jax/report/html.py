"""The study report as one self-contained page: tables, pictures, curves and their origin.

The page loads nothing from elsewhere: pictures are data URIs, figures are inline SVG, styles and
the few lines of script are in the page, and a content security policy forbids anything else.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from udp_jax.metrics import differences
from udp_jax.report import plots, text
from udp_jax.runtime import files

_REQUIRED = ("title", "summary", "command", "commit", "date", "seeds", "hardware", "versions",
             "config", "data", "radius_255", "feature_label", "columns", "rows")  # fmt: skip
# Samples shown in a line.
_IN_LINE = 8
_DIRECTIONS = {"higher": "▲ higher is better", "lower": "▼ lower is better"}


def write_report(
  path: str | os.PathLike[str], report: Mapping[str, Any], assets: Mapping[str, Any]
) -> None:
  """Writes the page; equal input gives equal bytes. The file is written whole or not at all.

  Args:
    path: the HTML file to write.
    report: the content of report.json. Required: "title", "summary", "command", "commit",
      "date", "seeds", "hardware", "versions", "config", "data", "radius_255" (8-bit levels),
      "feature_label", "columns" and "rows". Optional, with their sections: "notice", "against"
      (of `report.study.against`), "interval_meaning", "curves" ("victims", "protection"),
      "timesteps". None and NaN are shown as "-".
    assets: uint8 images, each key optional: "clean" (n, H, W, 3), "protected" {method: (n, H, W,
      3)} of the same pictures, "samples" {training set: (m, H, W, 3)}; "whole" {name: {training
      set: (H, W, 3)}}, pictures of any size, shown as they are; "learned" {training set: (k, H, W,
      3)}, some of what was learned. With "learned", samples are in lines, one below the other.

  Raises:
    ValueError: a required key is missing, or images have a wrong dtype or shape.
    OutputError: the file cannot be written.
  """
  files.write_bytes(path, render(report, assets).encode())


def render(report: Mapping[str, Any], assets: Mapping[str, Any]) -> str:
  """Returns the page of `write_report` as a string."""
  missing = [key for key in _REQUIRED if key not in report]
  if missing:
    raise ValueError(f"the report lacks {', '.join(missing)}")
  curves = report.get("curves") or {}
  timesteps = report.get("timesteps") or {}
  protected, samples = assets.get("protected") or {}, assets.get("samples") or {}
  learned = assets.get("learned") or {}
  names = [*(curves.get("victims") or {}), *(curves.get("protection") or {}), *timesteps]
  series = plots.assign_series(report["rows"], [*names, *protected, *samples])
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template("report.html.j2").render(
    report=report,
    notice=report.get("notice"),
    budget=text.budget(report),
    directions=_DIRECTIONS,
    table=_table(report, series),
    against=_against(report, series),
    meaning=report.get("interval_meaning"),
    pictures=_pictures(report, assets.get("clean"), protected, series),
    whole=_whole(assets.get("whole") or {}, series),
    samples=_samples(samples, series, learned),
    in_lines=bool(learned),
    curves=_curves(curves, timesteps, series),
    dots=_dots(report, series),
    series=series,
    config_text=json.dumps(text.jsonable(report["config"]), indent=2, sort_keys=True),
    has_spread=any(
      text.metric_values(row, column["key"])[1] is not None
      for row in report["rows"]
      for column in report["columns"]
    ),
    missing=text.MISSING,
  )


def delta_factor(radius_255: float) -> int:
  """Returns the factor that amplifies changes of up to `radius_255` levels to fill 8 bits."""
  return max(1, int(127 / radius_255)) if radius_255 > 0 else 1


def amplified_delta(clean: np.ndarray, protected: np.ndarray, factor: int) -> np.ndarray:
  """The change as a picture: 128 + factor * (protected - clean), uint8; grey is unchanged."""
  delta = protected.astype(np.int32) - clean.astype(np.int32)
  return np.clip(128 + factor * delta, 0, 255).astype(np.uint8)


def tile_images(images: np.ndarray, *, gap: int = 1) -> np.ndarray:
  """Tiles pictures (m, H, W, 3) row by row into one near-square RGBA picture with clear gaps."""
  count, height, width, _ = images.shape
  columns = math.ceil(math.sqrt(count))
  rows = math.ceil(count / columns)
  canvas = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), np.uint8)
  for i, image in enumerate(images):
    top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
    canvas[top : top + height, left : left + width, :3] = image
    canvas[top : top + height, left : left + width, 3] = 255
  return canvas


def data_uri(pixels: np.ndarray) -> str:
  """Encodes uint8 (H, W, 3 or 4) as a PNG in a data URI."""
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
  return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _check_images(what: str, images: Any) -> np.ndarray:
  images = np.asarray(images)
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
    raise ValueError(
      f"{what} must be uint8 of shape (n, H, W, 3), not {images.dtype} {images.shape}"
    )
  return images


def _table(report: Mapping[str, Any], series: Mapping[str, plots.Series]) -> list[dict[str, Any]]:
  """Formats the cells of the main table and marks the best mean of each column."""
  best = {}
  for column in report["columns"]:
    means = [text.metric_values(row, column["key"])[0] for row in report["rows"]]
    known = [mean for mean in means if mean is not None]
    if column.get("better") in _DIRECTIONS and len(set(known)) > 1:  # Equal means have no best.
      best[column["key"]] = max(known) if column["better"] == "higher" else min(known)
  rows = []
  for row in report["rows"]:
    cells = []
    for column in report["columns"]:
      key, digits = column["key"], column.get("digits", 3)
      mean, std, values = text.metric_values(row, key)
      cells.append(
        {
          "sort": "" if mean is None else repr(mean),
          "mean": text.format_number(mean, digits),
          "std": None if std is None else text.format_number(std, digits),
          "range": text.format_interval((row["metrics"].get(key) or {}).get("interval"), digits),
          "values": ", ".join(text.format_number(value, digits) for value in values),
          "best": mean is not None and best.get(key) == mean,
        }
      )
    rows.append({"series": series[row["name"]], "cells": cells})
  return rows


def _against(report: Mapping[str, Any], series: Mapping[str, plots.Series]) -> dict[str, Any]:
  """Lines of differences between rows, and the columns that have any."""
  found = report.get("against") or []
  keys = {key for line in found for key, claim in line["metrics"].items() if claim["interval"]}
  columns = [column for column in report["columns"] if column["key"] in keys]
  lines = []
  for line in found:
    cells = []
    for column in columns:
      claim, digits = line["metrics"].get(column["key"]) or {}, column.get("digits", 3)
      cells.append(
        {
          "text": text.format_number(claim.get("mean"), digits),
          "range": text.format_interval(claim.get("interval"), digits),
          "side": {1: "kept", -1: "lost", 0: ""}[differences.side(claim or None)],
        }
      )
    lines.append({"series": series[line["row"]], "other": series[line["other"]], "cells": cells})
  return {"columns": columns, "lines": lines}


def _pictures(
  report: Mapping[str, Any],
  clean: Any,
  protected: Mapping[str, Any],
  series: Mapping[str, plots.Series],
) -> dict[str, Any] | None:
  """Strips of the same pictures: clean, then protected and amplified change for each method."""
  if clean is None:
    if protected:
      raise ValueError('assets hold "protected" pictures without the "clean" ones')
    return None
  clean = _check_images("clean", clean)
  factor = delta_factor(report["radius_255"])
  groups = []
  for name in _in_row_order(protected, series):
    images = _check_images(f"protected {name!r}", protected[name])
    if images.shape != clean.shape:
      raise ValueError(f"protected {name!r} has shape {images.shape}, clean {clean.shape}")
    delta = amplified_delta(clean, images, factor)
    largest = int(np.abs(images.astype(np.int32) - clean).max()) if images.size else 0
    groups.append(
      {
        "series": series[name],
        "largest": largest,
        "images": [data_uri(image) for image in images],
        "deltas": [data_uri(image) for image in delta],
      }
    )
  return {
    "clean": [data_uri(image) for image in clean],
    "groups": groups,
    "factor": factor,
    "height": clean.shape[1],
    "width": clean.shape[2],
  }


def _whole(
  pictures: Mapping[str, Mapping[str, Any]], series: Mapping[str, plots.Series]
) -> list[dict[str, Any]]:
  """Pictures of any size, each in all versions, at their own size."""
  shown = []
  for name, versions in pictures.items():
    views = []
    for row in _in_row_order(versions, series):
      [pixels] = _check_images(f"whole {name!r}", np.asarray(versions[row])[None])
      height, width, _ = pixels.shape
      views.append(
        {"series": series[row], "uri": data_uri(pixels), "width": width, "height": height}
      )
    shown.append({"name": name, "views": views})
  return shown


def _samples(
  samples: Mapping[str, Any],
  series: Mapping[str, plots.Series],
  learned: Mapping[str, Any],
) -> list[dict[str, Any]]:
  """One tiled PNG for each training set, or a line of pictures beside what was learned."""
  cards = []
  for name in _in_row_order(samples, series):
    images = _check_images(f"samples {name!r}", samples[name])
    if not len(images):
      continue
    if learned:
      taught = _check_images(f"learned {name!r}", learned[name])
      drawn = images[:_IN_LINE]
      cards.append(
        {
          "series": series[name],
          "taught": [data_uri(image) for image in taught],
          "drawn": [data_uri(image) for image in drawn],
          "height": drawn.shape[1],
          "width": drawn.shape[2],
        }
      )
      continue
    tiled = tile_images(images)
    height, width, _ = tiled.shape
    scale = max(1, 300 // width)
    cards.append(
      {
        "series": series[name],
        "count": len(images),
        "uri": data_uri(tiled),
        "width": width * scale,
        "height": height * scale,
      }
    )
  return cards


def _in_row_order(images: Mapping[str, Any], series: Mapping[str, plots.Series]) -> Sequence[str]:
  return [name for name in series if name in images]


def _curves(
  curves: Mapping[str, Any], timesteps: Mapping[str, Any], series: Mapping[str, plots.Series]
) -> list[dict[str, Any]]:
  """Figures over steps, rounds and timesteps, with captions; figures without data are left out."""
  figures = []
  victims, protection = curves.get("victims") or {}, curves.get("protection") or {}
  if victims:
    svg, cut = plots.victim_losses(victims, series, "victims")
    caption = (
      "How well each model fits its own training set while it learns. Lines are means over seeds, "
      "bands their spread. A line that stays high belongs to pictures that are hard to learn."
    )
    if cut is not None:
      caption += f" The steep start above {cut:.3g} is cut off."
    figures.append(_figure("Loss of the trained models", caption, svg, victims, series))
  # Losses averaged over different timesteps differ in level, as UDP's and EUDP's do.
  heights = "Methods may weigh noise levels differently: compare courses, not heights."
  both = {
    "min_loss": (
      "Making the protection: the model learns",
      "Loss of the protector's own model after its training steps of each round. It rises when "
      "the pictures become harder to learn faster than the model can follow. " + heights,
    ),
    "max_loss": (
      "Making the protection: the change fights back",
      "Loss that the hidden change reaches against that model in each round: what the protection "
      "tries to raise. " + heights,
    ),
  }
  for key, (title, caption) in both.items():
    having = {name: curve for name, curve in protection.items() if curve.get(key)}
    if having:
      svg = plots.protection_losses(having, key, series, key.replace("_", "-"))
      figures.append(_figure(title, caption, svg, having, series))
  if timesteps:
    svg = plots.timestep_distributions(timesteps, series, "timesteps")
    caption = (
      "Which noise levels the protection is worked out for, in multiples of an even choice "
      "(1 = even). Small t means nearly clean pictures."
    )
    figures.append(_figure("Where in the noise schedule", caption, svg, timesteps, series))
  return figures


def _figure(
  title: str,
  caption: str,
  svg: str,
  names: Mapping[str, Any],
  series: Mapping[str, plots.Series],
) -> dict[str, Any]:
  legend = [series[name] for name in _in_row_order(names, series)]
  # Safe as HTML: our own plotting code made the SVG, and matplotlib escapes its texts.
  return {"title": title, "caption": caption, "svg": Markup(svg), "legend": legend}


def _dots(report: Mapping[str, Any], series: Mapping[str, plots.Series]) -> list[dict[str, Any]]:
  """A dot plot for each column that at least two rows have."""
  figures = []
  for i, column in enumerate(report["columns"]):
    svg = plots.metric_dots(column, report["rows"], series, f"dots{i}")
    if svg is not None:
      figures.append({"column": column, "svg": Markup(svg)})
  return figures
