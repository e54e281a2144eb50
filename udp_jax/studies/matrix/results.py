"""report.json and cells.csv: all numbers of a matrix, from the files of its cells.

Neither file depends on when the cells were made, or in how many runs.
"""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from udp_jax.data.marks import CLEAN
from udp_jax.metrics import differences, sets, statistics, style, survival
from udp_jax.models import galaxies, places
from udp_jax.purifiers import uses_prior
from udp_jax.report.names import NONE, PICTURES, SAMPLES, method_label
from udp_jax.runtime import files
from udp_jax.studies import rows
from udp_jax.studies.matrix import cells, pairs
from udp_jax.studies.matrix import plan as plan_lib
from udp_jax.studies.matrix import subject as subject_lib
from udp_jax.studies.matrix.catalogue import Metric
from udp_jax.studies.matrix.finished import Finished
from udp_jax.studies.matrix.plan import Cell, Plan

_SELECTING = ("--rows", "--purifiers", "--threats", "--workdir")
WORKDIR = "WORKDIR"
# Metrics whose values are 0 or 1.
_FLAGS = (style.METRIC, "clip_style", "prompt_hits", "precision", "recall")


def build(workdir: Path, finished: Finished, *, command: str = "") -> dict[str, Any]:
  """Builds the report of a finished run, the contents of report.json.

  Args:
    workdir: folder of the matrix.
    finished: what `matrix.run.run_matrix` returned.
    command: the command of this run, from which commands for single cells are derived.
  """
  config, plan, protecting = finished.config, finished.plan, finished.protecting
  own = reproducing(command)
  tables = [_table(workdir, finished, threat, own) for threat in (None, *plan.threats)]
  clean = finished.clean
  origin = clean.origin
  return {
    "title": config.title,
    "notice": config.notice or None,
    "command": own,
    "config": config.to_dict(),
    "data": {
      "source": str(origin.get("source", config.data.source)),
      "pictures": len(clean.images),
      "holdout": len(finished.holdout.images),
      "image_size": int(clean.images.shape[1]),
      "sha256": origin.get("sha256"),
      "notes": [str(origin[name]) for name in ("note", "notes") if origin.get(name)],
    },
    "model": config.model.path,
    # The model that protections attack, if it is another one.
    "protection_model": config.get("protection_model", {}).get("path", ""),
    "networks": finished.networks,
    # The largest budget of all rows; each row has its own.
    "radius_255": max(rows.row_radius_255(config, row) for row in plan.rows if row != CLEAN),
    "seeds": list(plan.seeds),
    "rows": [_row(protecting, row) for row in plan.rows],
    "purifiers": [_method(config, "purifiers", name) for name in plan.purifiers],
    "threats": [
      _method(config, "threats", name) | {"kind": finished.kinds[name]} for name in plan.threats
    ],
    "survival_formula": survival.FORMULA,
    "noise_rule": survival.GATE,
    "interval_level": statistics.LEVEL,
    "interval_meaning": statistics.meaning(clean.groups),
    "tables": tables,
    "failures": _failures(plan, workdir),
  }


def reproducing(command: str, cell: Cell | None = None) -> str:
  """Returns the command for a run, or for one cell, with a placeholder for the folder."""
  words, kept = shlex.split(command), []
  while words:
    word = words.pop(0)
    flag = "--" + word.partition("=")[0].lstrip("-")
    if not word.startswith("-") or flag not in _SELECTING:
      kept.append(word)
      continue
    given = [word] if "=" in word or not words else [word, words.pop(0)]
    if flag != "--workdir" and cell is None:
      kept += given
  if cell is not None:
    kept += [f"--rows={cell.row}", f"--purifiers={cell.purifier}", f"--threats={cell.threat or ''}"]
  return shlex.join([*kept, f"--workdir={WORKDIR}"]) if command else ""


def example(report: Mapping[str, Any]) -> str:
  """Returns the command that makes a single cell of a report."""
  row = next((r["name"] for r in report["rows"] if not r["control"]), report["rows"][-1]["name"])
  threat = report["threats"][0]["name"] if report["threats"] else None
  return reproducing(report["command"], Cell(row, report["purifiers"][-1]["name"], threat))


def _row(config: Any, name: str) -> dict[str, Any]:
  row = None if name == CLEAN else rows.settings(config, name)
  return {
    "name": name,
    "label": rows.label(config, name, full=True),
    "control": rows.is_control(config, name),
    "method": CLEAN if row is None else row.method,
    "radius_255": None if row is None else row.radius_255,
    "num_rounds": 0 if row is None else row.num_rounds,
    "options": {} if row is None else _plain(row.options),
  }


def _method(config: Any, kind: str, name: str) -> dict[str, Any]:
  if name == NONE:
    return {"name": name, "label": "none", "method": NONE, "options": {}}
  given = plan_lib.settings(config, kind, name)
  label, prior = method_label(name), subject_lib.path_of_prior(config)
  if prior and kind == "purifiers" and uses_prior(given.method, given.options):
    label += f" (prior: {_name_of(prior)})"
  return {
    "name": name,
    "label": label,
    "method": given.method,
    "options": _plain(given.options),
  }


def _name_of(prior: str) -> str:
  return galaxies.LABEL if prior.startswith(places.GALAXIES) else Path(prior).name


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
  return {k: v.to_dict() if hasattr(v, "to_dict") else v for k, v in sorted(options.items())}


def _table(workdir: Path, finished: Finished, threat: str | None, command: str) -> dict[str, Any]:
  """Tabulates every cell of the pictures, or of one threat, with survival of the effects."""
  plan = finished.plan
  kind = PICTURES if threat is None else finished.kinds[threat]
  seeds: Sequence[int | None] = [None] if threat is None else plan.seeds
  # Seeds of edits are draws for the same model; those of samples are models of their own.
  trained = kind == SAMPLES
  records: dict[tuple[str, str], list[dict[str, Any]]] = {}
  entries: list[dict[str, Any]] = []
  for cell in plan_lib.picture_cells(plan):
    read = [cells.read(cell._replace(threat=threat, seed=s), workdir) for s in seeds]
    whole = [record for record in read if record is not None and cells.ERROR not in record]
    # A mean over some of the seeds must not be compared with means over all of them.
    measured = len(whole) == len(seeds)
    if measured:
      records[cell.row, cell.purifier] = whole
    errors = [
      record[cells.ERROR] for record in read if record is not None and cells.ERROR in record
    ]
    entries.append(
      {
        "row": cell.row,
        "purifier": cell.purifier,
        "error": None if measured else (errors or ["not made"])[0],
        "command": reproducing(command, cell._replace(threat=threat)),
        "metrics": {
          metric.key: _summary(whole, metric, trained, _groups(finished, kind, metric.key))
          for metric in finished.metrics[kind]
        }
        if measured
        else {},
      }
    )
  shown = [
    metric
    for metric in finished.metrics[kind]
    if any(entry["metrics"].get(metric.key, {}).get("mean") is not None for entry in entries)
  ]
  for entry in entries:
    found = entry["metrics"]
    entry["metrics"] = {m.key: found[m.key] for m in shown if m.key in found}
  return {
    "threat": threat,
    "kind": kind,
    "metrics": [metric._asdict() for metric in shown],
    "cells": entries,
    "survival": {
      metric.key: _survival(records, metric.key, plan, trained, _groups(finished, kind, metric.key))
      for metric in shown
      if metric.survives
    },
    "against": {
      metric.key: differences.table(
        _by_place(records, metric.key),
        pairs.pairs(finished.protecting, plan),
        plan.purifiers,
        better=metric.better,
        trained=trained,
        groups=_groups(finished, kind, metric.key),
      )
      for metric in shown
      if metric.headline and metric.better
    },
  }


def _groups(finished: Finished, kind: str, key: str) -> np.ndarray | None:
  """Returns the groups of the pictures that one metric is measured on; None without groups.

  Samples are no parts of pictures, but trained models are measured on pictures too.
  """
  if kind == SAMPLES:
    measured = {"loss_clean": finished.clean, "loss_holdout": finished.holdout}.get(key)
    return None if measured is None else measured.groups
  return finished.clean.groups


def _values(records: list[dict[str, Any]], key: str) -> np.ndarray | None:
  """Returns one metric of one cell, (seeds, pictures)."""
  if key in sets.COUNTED and not _counted(records):
    return None
  found = [cells.values_of(record, key) for record in records]
  if any(values is None for values in found):
    return None
  return np.stack([values for values in found if values is not None])


def _counted(records: list[dict[str, Any]]) -> bool:
  """Whether sets were of equal counts; earlier versions compared all of either."""
  return all(record["scalars"].get(sets.COUNT) is not None for record in records)


def _summary(
  records: list[dict[str, Any]], metric: Metric, trained: bool, groups: np.ndarray | None
) -> dict[str, Any]:
  if metric.of_set:
    found = [record["scalars"].get(metric.key) for record in records]
    if not _counted(records):
      found = [None]
    # One value for a set has no spread over pictures, only over seeds.
    whole = np.array([[np.nan if v is None else v] for v in found], float)
    return statistics.summarise(whole, trained=True)
  values = _values(records, metric.key)
  if values is None:
    values = np.zeros((1, 0))
  return statistics.summarise(values, trained=trained, groups=groups, flags=metric.key in _FLAGS)


def _by_place(
  records: dict[tuple[str, str], list[dict[str, Any]]], key: str
) -> dict[tuple[str, str], np.ndarray]:
  values = {place: _values(found, key) for place, found in records.items()}
  return {place: array for place, array in values.items() if array is not None}


def _survival(
  records: dict[tuple[str, str], list[dict[str, Any]]],
  key: str,
  plan: Plan,
  trained: bool,
  groups: np.ndarray | None,
) -> list[dict[str, Any]]:
  return survival.table(
    _by_place(records, key),
    [row for row in plan.rows if row != CLEAN],
    [purifier for purifier in plan.purifiers if purifier != NONE],
    clean=CLEAN,
    none=NONE,
    trained=trained,
    groups=groups,
  )


def _failures(plan: Plan, workdir: Path) -> list[dict[str, Any]]:
  failures = []
  for cell in _all_cells(plan):
    record = cells.read(cell, workdir)
    if record is None or cells.ERROR in record:
      error = "not made" if record is None else record[cells.ERROR]
      failures.append({**cell._asdict(), "error": error})
  return failures


def _all_cells(plan: Plan) -> Iterator[Cell]:
  yield from plan_lib.picture_cells(plan)
  for threat in plan.threats:
    yield from plan_lib.threat_cells(plan, threat)


_CSV = ("threat", "row", "purifier", "metric", "mean", "std", "seed_std", "low", "high", "count",
        "survival", "survival_low", "survival_high", "error")  # fmt: skip


def to_csv(report: dict[str, Any]) -> str:
  """Formats all cells of a report, one line per cell and metric; empty where there is no number."""
  buffer = io.StringIO()
  writer = csv.DictWriter(buffer, _CSV, lineterminator="\n")
  writer.writeheader()
  for table in report["tables"]:
    kept: dict[tuple[str, str, str], dict[str, Any]] = {
      (key, line["row"], purifier): found
      for key, lines in table["survival"].items()
      for line in lines
      for purifier, found in line["purifiers"].items()
    }
    for entry in table["cells"]:
      place = {"threat": table["threat"], "row": entry["row"], "purifier": entry["purifier"]}
      if entry["error"] is not None:
        writer.writerow(place | {"error": entry["error"]})
      for key, found in entry["metrics"].items():
        left = kept.get((key, entry["row"], entry["purifier"]), {})
        low, high = found["interval"] or (None, None)
        ratio_low, ratio_high = left.get("interval") or (None, None)
        writer.writerow(
          place
          | {"metric": key, "low": low, "high": high, "survival": left.get("value")}
          | {name: found[name] for name in ("mean", "std", "seed_std", "count")}
          | {"survival_low": ratio_low, "survival_high": ratio_high}
        )
  return buffer.getvalue()


def write_csv(path: Path, report: dict[str, Any]) -> None:
  """Writes `to_csv`. Raises OutputError if it cannot be written."""
  files.write_bytes(path, to_csv(report).encode())
