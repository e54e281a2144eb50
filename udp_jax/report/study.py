"""The parts of a report that every kind of study has: columns, frame, summary."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import numpy as np

from udp_jax.metrics import differences, statistics
from udp_jax.report import text
from udp_jax.runtime import provenance


def column(key: str, label: str, help_text: str, better: str | None, digits: int) -> dict:
  """Returns a column of a report's table; `better` is "higher", "lower" or None."""
  return {"key": key, "label": label, "help": help_text, "better": better, "digits": digits}


def frame(
  config: Any, summary: str, rows: list[dict[str, Any]], columns: list[dict[str, Any]]
) -> dict[str, Any]:
  """Returns the common part of a report: settings, origin, date, and the table."""
  budgets = text.radii({"rows": rows, "radius_255": config.radius_255})
  if len(budgets) > 1:
    columns = [*columns, column("radius_255", "Budget", "Largest change, 8-bit levels.", None, 2)]
    rows = [
      row | {"metrics": row["metrics"] | {"radius_255": _constant(row["radius_255"])}}
      for row in rows
    ]
  return {
    "title": config.title,
    "summary": summary,
    "notice": config.notice or None,
    "command": provenance.command(),
    "commit": provenance.commit() or "not a checkout",
    "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    "seeds": list(config.threat.seeds),
    "interval_meaning": statistics.MEANING_OF_SEEDS,
    "hardware": provenance.hardware(),
    "versions": provenance.versions(),
    "config": config.to_dict(),
    # The largest budget of all rows, for figures that show them together; each row has its own.
    "radius_255": budgets[-1],
    "columns": columns,
    "rows": rows,
  }


def _constant(value: float | None) -> dict[str, Any]:
  return {"mean": value, "std": None, "values": [] if value is None else [value]}


def columns(feature_label: str) -> list[dict[str, Any]]:
  """Returns the columns of the main table; "better" is what the pictures' owner prefers."""
  distance = (
    "Frechet distance between {} and held-out clean pictures, as many of either, in features of "
    "the network named in the notes. "
  )
  return [
    column(
      "fd_samples",
      f"{feature_label} (samples)",
      distance.format("samples of the trained model") + "Larger: the model learned less.",
      "higher",
      1,
    ),
    column(
      "fd_training_set",
      f"{feature_label} (training set)",
      distance.format("the training pictures themselves")
      + "It grows with visibility alone, so read the samples' distance beside it.",
      None,
      1,
    ),
    column("precision", "Precision", "Samples that look like held-out pictures.", "lower", 3),
    column("recall", "Recall", "Held-out pictures that samples come near to.", "lower", 3),
    column("mmd", "MMD", "Polynomial-kernel distance of samples (KID).", "higher", 3),
    column(
      "loss_training_set",
      "Loss (training set)",
      "Denoising loss that is left on its own training pictures: the max-min objective itself.",
      "higher",
      4,
    ),
    column(
      "loss_clean_holdout",
      "Loss (held-out)",
      "Denoising loss on held-out clean pictures: what the model knows of the real thing.",
      "higher",
      4,
    ),
    column("psnr", "PSNR (dB)", "Protected against clean; larger is less visible.", "higher", 2),
    column("ssim", "SSIM", "Protected against clean; 1 is identical.", "higher", 3),
    column("rms_ratio", "RMS / budget", "How much of the budget is used.", None, 2),
  ]


def against(
  rows: list[dict[str, Any]], columns: list[dict[str, Any]], pairs: Sequence[differences.Pair]
) -> list[dict[str, Any]]:
  """Returns the differences of pairs of rows, each seed with itself, positive if better.

  All rows use the same draws for a seed, so that only their training sets differ. Claims are
  corrected over all pairs and columns (Holm); columns that no training changes make none.

  Args:
    rows: rows of the report, with their "metrics" over seeds.
    columns: columns of the report.
    pairs: the rows to compare.

  Returns:
    One entry per pair: "row", "other", "kind", and "metrics" {key: {"mean", "std", "interval",
    "p", "holm", "values"}} of the columns that have a better direction.
  """
  known = {row["name"]: row["metrics"] for row in rows}
  lines = []
  for pair in pairs:
    found = {}
    for column in columns:
      values = [known[name].get(column["key"], {}).get("values") for name in (pair.row, pair.other)]
      if column["better"] and all(values):
        sign = 1.0 if column["better"] == "higher" else -1.0
        own, other = (np.array(v, float) for v in values)
        found[column["key"]] = statistics.over_seeds(list(sign * (own - other)))
    lines.append({**pair._asdict(), "metrics": found})
  differences.correct([claim for line in lines for claim in line["metrics"].values()])
  return lines


def summary(config: Any, rows: list[dict[str, Any]], count: int) -> str:
  """Summarises in plain words what was done and what the table shows."""
  levels = text.budget({"rows": rows, "radius_255": config.radius_255})
  said = (
    f"{count} pictures were protected with at most {levels} of 255 levels of change. "
    "Then one diffusion model was trained from scratch on each version of them, with the same "
    "settings and seeds, and asked for new pictures. "
  )
  found = {row["name"]: row["metrics"].get("fd_samples", {}).get("mean") for row in rows}
  known = {row["label"]: found[row["name"]] for row in rows if found[row["name"]] is not None}
  if known:
    order = sorted(known, key=lambda label: -known[label])
    ranked = ", ".join(f"{label} {known[label]:.0f}" for label in order)
    said += f"Distance of those samples from real pictures, farthest first: {ranked}."
  return said
