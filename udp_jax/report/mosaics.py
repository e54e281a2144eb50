"""Small pictures of a matrix's cells: the same ones of every row, purifier and threat."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from udp_jax.data import manifest
from udp_jax.matrix import purifying
from udp_jax.matrix.catalogue import PICTURES
from udp_jax.matrix.plan import NONE, Cell
from udp_jax.report import html, plots

# Pictures of a mosaic, and its widest picture in pixels: a page must stay small enough to send.
_SHOWN = 4
_WIDEST = 128

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


def gallery(
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
