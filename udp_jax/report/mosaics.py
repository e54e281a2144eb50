"""Thumbnails of a matrix's cells: the same pictures for every row, purifier and threat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from udp_jax.report import html, plots
from udp_jax.report.names import NONE, PICTURES

_WIDEST = 128

Mosaics = dict[str, dict[str, dict[str, np.ndarray]]]


def gallery(
  report: Mapping[str, Any], mosaics: Mosaics, series: Mapping[str, plots.Series]
) -> list[dict[str, Any]]:
  """One grid per row: a column for each purifier, a line for the pictures and for each threat."""
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
