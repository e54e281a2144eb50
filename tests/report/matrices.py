"""The report of a small matrix whose numbers are known."""

from __future__ import annotations

import numpy as np

from udp_jax.metrics import differences, statistics, survival
from udp_jax.metrics.differences import Pair
from udp_jax.studies.matrix import catalogue

ROWS = ("clean", "random_noise", "foo", "bar")
PURIFIERS = ("none", "jpeg", "impress")
PAIRS = [Pair("foo", "random_noise", "control"), Pair("bar", "random_noise", "control"),
         Pair("bar", "foo", "plain")]  # fmt: skip


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
        "metrics": {m.key: statistics.summarise(v, trained=False) for m in metrics},
      }
      for (row, purifier), v in values.items()
    ]
    if threat and "impress" in purifiers:
      entries[-1] |= {"error": "ValueError: no luck", "metrics": {}}
      del values["bar", "impress"]
    lines = survival.table(
      values, ROWS[1:], purifiers[1:], clean="clean", none="none", trained=False
    )
    tables.append(
      {
        "threat": threat,
        "kind": kind,
        "metrics": [m._asdict() for m in metrics],
        "cells": entries,
        "survival": {key: lines},
        "against": {key: differences.table(values, PAIRS, purifiers, better=better, trained=False)},
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
    "noise_rule": survival.GATE,
    "interval_level": 0.95,
    "interval_meaning": statistics.MEANING,
    "tables": tables,
    "failures": [
      {"row": "bar", "purifier": "impress", "threat": "img2img", "seed": 0,
       "error": "ValueError: no luck"}
    ],
  }  # fmt: skip
