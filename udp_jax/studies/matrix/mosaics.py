"""The pictures on a matrix's page, read from the folders of the cells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from udp_jax.data import manifest
from udp_jax.report.mosaics import Mosaics
from udp_jax.report.names import PICTURES
from udp_jax.studies.matrix import plan
from udp_jax.studies.matrix.plan import Cell

# Pictures in a mosaic, and its largest width in pixels: a page must stay small enough to send.
_SHOWN = 4


def pictures(report: Mapping[str, Any], workdir: Path) -> Mosaics:
  """Returns row -> purifier -> "pictures" or a threat -> uint8 (n, H, W, 3), for the page.

  All cells show the same pictures, spread evenly over the set; cells without files are left out.
  """
  found: Mosaics = {}
  for row in [entry["name"] for entry in report["rows"]]:
    found[row] = {}
    for purifier in [entry["name"] for entry in report["purifiers"]]:
      cell = Cell(row, purifier)
      shown = {PICTURES: _read(plan.folder_of(cell, workdir), spread=True)}
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
  # Samples belong to no picture. Pictures and edits follow the set, which is ordered by class.
  return images[np.linspace(0, len(images) - 1, count, dtype=int)] if spread else images[:count]
