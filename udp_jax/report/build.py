"""Puts a finished study into the form that the report shows and `report.json` keeps."""

from __future__ import annotations

import datetime
import inspect
from pathlib import Path
from typing import Any

import numpy as np

from udp_jax import lookup, promises, provenance
from udp_jax.data import manifest
from udp_jax.metrics_writer import read_metrics
from udp_jax.models.base import DiffusionModel
from udp_jax.ops import timesteps
from udp_jax.report import text
from udp_jax.study import CLEAN, row_settings

_SHOWN_PICTURES = 8
_SHOWN_SAMPLES = 16

_LABELS = {
  "clean": "Clean",
  "random_noise": "Random noise",
  "sign_noise": "Sign noise",
  "udp": "UDP",
  "eudp": "EUDP",
  "advdm": "AdvDM",
}
# Of rows that imitate another one, by method.
_IMITATIONS = {"matched_noise": "matched noise", "shuffled_delta": "shuffled"}
# Methods with options `a` and `b` of `schedule_power`; UDP's are fixed to 0, uniform.
_DRAW_TIMESTEPS = ("udp", "eudp", "advdm")


def label(config: Any, row: str) -> str:
  """What a row of the study is called in tables: "EUDP, matched noise" for eudp_matched_noise."""
  if row in _LABELS:
    return _LABELS[row]
  method, _, of, _ = row_settings(config, row)
  if of is not None and method in _IMITATIONS:
    return f"{label(config, of)}, {_IMITATIONS[method]}"
  return row.replace("_", " ")


def column(key: str, label: str, help_text: str, better: str | None, digits: int) -> dict:
  """A column of a report's table; `better` is "higher", "lower" or None."""
  return {"key": key, "label": label, "help": help_text, "better": better, "digits": digits}


def naming(config: Any, row: str) -> dict[str, Any]:
  """What a report says of a row beside its numbers."""
  own = None if row == CLEAN else promises.row_radius_255(config, row)
  return {"label": label(config, row), "control": _is_control(config, row), "radius_255": own}


def frame(
  config: Any, summary: str, rows: list[dict[str, Any]], columns: list[dict[str, Any]]
) -> dict[str, Any]:
  """The part of a report that every kind of study has: what, where, when, and the table."""
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
    "hardware": provenance.hardware(),
    "versions": provenance.versions(),
    "config": config.to_dict(),
    # The largest of all rows, for what is shown of them together; each row has its own.
    "radius_255": budgets[-1],
    "columns": columns,
    "rows": rows,
  }


def _constant(value: float | None) -> dict[str, Any]:
  return {"mean": value, "std": None, "values": [] if value is None else [value]}


def columns(feature_label: str) -> list[dict[str, Any]]:
  """The columns of the main table; "better" takes the side of the pictures' owner."""
  distance = (
    "Frechet distance between {} and held-out clean pictures, in features of the network named "
    "in the notes. "
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


def build(
  config: Any,
  rows: list[dict[str, Any]],
  workdir: Path,
  model: DiffusionModel,
  feature_label: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(report, assets) for `report.html.write_report`, from the folders of a finished study."""
  clean, record = manifest.read_folder(workdir / "clean")
  holdout = manifest.read_folder(workdir / "holdout")[0]
  origin = (record or {}).get("origin") or {}
  table = [row | naming(config, row["name"]) for row in rows]
  notes = [str(origin[name]) for name in ("note", "notes") if origin.get(name)]
  words = summary(config, table, len(clean.images))
  report = frame(config, words, table, columns(feature_label)) | {
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
  # Evenly spread over the set: its order often follows classes or photographs.
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


def summary(config: Any, rows: list[dict[str, Any]], count: int) -> str:
  """What was done and what the table says, in plain words; nothing that the table does not say."""
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


def _is_control(config: Any, row: str) -> bool:
  return row == CLEAN or row_settings(config, row)[0] in ("random_noise", *_IMITATIONS)


def _victims(config: Any, workdir: Path) -> dict[str, Any]:
  curves = {}
  for row in config.rows:
    runs = [
      read_metrics(workdir / "threats" / row / f"seed{seed}" / "metrics.jsonl")
      for seed in config.threat.seeds
    ]
    if not all(runs):
      continue
    # Seeds that were added later may have been logged at other steps.
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
  """Losses of the rounds of every row that trains a surrogate."""
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
  """The distribution over timesteps of every row that has one."""
  shown = {}
  for row in config.rows:
    method, _, _, options = (CLEAN, 0, None, {}) if row == CLEAN else row_settings(config, row)
    if method in _DRAW_TIMESTEPS:
      defaults = inspect.signature(lookup.constructor("udp_jax.protections", method)).parameters
      a, b = (
        options.get(name, defaults[name].default if name in defaults else 0.0) for name in "ab"
      )
      shown[row] = [float(p) for p in timesteps.schedule_power(model.schedule, a, b)]
  return shown
