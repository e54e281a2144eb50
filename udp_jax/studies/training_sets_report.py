"""Converts a finished study into the form of the report page and `report.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from udp_jax import registry
from udp_jax.data import manifest
from udp_jax.data.marks import CLEAN
from udp_jax.metrics.differences import Pair
from udp_jax.models.base import DiffusionModel
from udp_jax.ops import timesteps
from udp_jax.report import study
from udp_jax.runtime.metrics_log import read_metrics
from udp_jax.studies import rows as rows_lib

_SHOWN_PICTURES = 8
_SHOWN_SAMPLES = 16

# Methods with options `a` and `b` of `schedule_power`; UDP fixes both to 0, which is uniform.
_DRAW_TIMESTEPS = ("udp", "eudp", "advdm")


def build(
  config: Any,
  rows: list[dict[str, Any]],
  workdir: Path,
  model: DiffusionModel,
  feature_label: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns (report, assets) for `report.html.write_report`, from a finished study's folders."""
  clean, record = manifest.read_folder(workdir / "clean")
  holdout = manifest.read_folder(workdir / "holdout")[0]
  origin = (record or {}).get("origin") or {}
  table = [row | rows_lib.naming(config, row["name"]) for row in rows]
  notes = [str(origin[name]) for name in ("note", "notes") if origin.get(name)]
  words = study.summary(config, table, len(clean.images))
  columns = study.columns(feature_label)
  report = study.frame(config, words, table, columns) | {
    "against": study.against(table, columns, pairs(config)),
    "data": {
      "source": str(origin.get("source", config.data.source)),
      "train_images": len(clean.images),
      "holdout_images": len(holdout.images),
      "image_size": int(clean.images.shape[1]),
      "notes": notes,
    },
    "feature_label": feature_label,
    "curves": {"victims": _victims(config, workdir), "protection": rounds(config, workdir)},
    "timesteps": timestep_curves(config, model),
  }
  # Spread evenly over the set, because its order often follows classes or photographs.
  shown = np.linspace(0, len(clean.images) - 1, min(_SHOWN_PICTURES, len(clean.images)), dtype=int)
  protected = {
    row: manifest.read_folder(workdir / "protected" / row)[0].images[shown]
    for row in config.rows
    if row != CLEAN
  }
  samples = {}
  for row in config.rows:
    folder = workdir / "threats" / row / f"seed{config.threat.seeds[0]}" / "samples"
    samples[row] = manifest.read_folder(folder)[0].images[:_SHOWN_SAMPLES]
  assets = {"clean": clean.images[shown], "protected": protected, "samples": samples}
  return report, assets


def pairs(config: Any) -> list[Pair]:
  """Returns every protection with its control: noise of its own values, else random noise."""
  known = [row for row in config.rows if row != CLEAN]
  matched = {
    rows_lib.settings(config, row).imitates: row
    for row in known
    if rows_lib.settings(config, row).method == "matched_noise"
  }
  noise = "random_noise" if "random_noise" in known else None
  chosen = [(row, matched.get(row, noise)) for row in known if not rows_lib.is_control(config, row)]
  return [Pair(row, other, "control") for row, other in chosen if other is not None]


def _victims(config: Any, workdir: Path) -> dict[str, Any]:
  curves = {}
  for row in config.rows:
    runs = [
      read_metrics(workdir / "threats" / row / f"seed{seed}" / "metrics.jsonl")
      for seed in config.threat.seeds
    ]
    if not all(runs):
      continue
    # Runs of seeds that were added later may have been logged at other steps.
    by_step = [{record["position"]: record["loss"] for record in run} for run in runs]
    steps = sorted(set.intersection(*(set(losses) for losses in by_step)))
    losses = np.array([[losses[step] for step in steps] for losses in by_step], float)
    curves[row] = {
      "steps": steps,
      "mean": losses.mean(0).tolist(),
      "low": losses.min(0).tolist(),
      "high": losses.max(0).tolist(),
    }
  return curves


def rounds(config: Any, workdir: Path) -> dict[str, Any]:
  """Returns the losses over rounds of every row that trains a surrogate."""
  curves = {}
  for row in config.rows:
    records = read_metrics(workdir / "stages" / f"protect_{row}" / "metrics.jsonl")
    if records and "train_loss" in records[0]:
      curves[row] = {
        "round": [record["position"] for record in records],
        "min_loss": [record["train_loss"] for record in records],
        "max_loss": [record.get("max_loss") for record in records],
      }
  return curves


def timestep_curves(config: Any, model: DiffusionModel) -> dict[str, list[float]]:
  """Returns the timestep distribution of every row that has one."""
  shown = {}
  for name in config.rows:
    row = None if name == CLEAN else rows_lib.settings(config, name)
    if row is not None and row.method in _DRAW_TIMESTEPS:
      known = registry.fields(registry.constructor("udp_jax.protections", row.method))
      a, b = (row.options.get(n, known[n].default if n in known else 0.0) for n in "ab")
      probs = timesteps.schedule_power(model.schedule, a, b) if row.probs is None else row.probs
      shown[name] = [float(p) for p in probs]
  return shown
