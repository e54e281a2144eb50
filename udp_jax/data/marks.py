"""The files that mark an output folder of ours: its manifest, or the marker of unfinished work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from udp_jax.data import naming
from udp_jax.runtime import files

FORMAT = 1
MANIFEST = "manifest.json"
INCOMPLETE = ".incomplete"
CLEAN = "clean"


def read_manifest(folder: str | os.PathLike) -> dict[str, Any] | None:
  """Reads the folder's manifest; None if there is none or it is not ours.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   read_manifest(place) is None
  True
  """
  try:
    manifest = files.parse_json((Path(folder) / MANIFEST).read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None
  if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
    return None
  entries = manifest.get("images")
  sound = isinstance(entries, list) and all(
    isinstance(entry, dict) and naming.is_safe_name(entry.get("file")) for entry in entries
  )
  return manifest if sound and entries and manifest.get("complete") is True else None


def is_complete(folder: str | os.PathLike) -> bool:
  """Returns whether a folder is finished: it has our manifest and every file listed there.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   is_complete(place)
  False
  """
  manifest = read_manifest(folder)
  return manifest is not None and all(
    (Path(folder) / entry["file"]).is_file() for entry in manifest["images"]
  )


def describe(folder: str | os.PathLike) -> str | None:
  """Describes a finished folder of ours; None for any other folder.

  For example "a folder that udp_jax protected by eudp, radius 16".

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   describe(place) is None
  True
  """
  manifest = read_manifest(folder)
  if manifest is None:
    return None
  method = manifest.get("method")
  if method == CLEAN:
    return "a clean reference that udp_jax kept"
  if method == "samples":
    return "a folder that udp_jax sampled from a model"
  if isinstance(manifest.get("radius_255"), int | float):
    return f"a folder that udp_jax protected by {method}, radius {manifest['radius_255']:g}"
  return f"a folder that udp_jax purified by {method}" if method else "a folder that udp_jax wrote"


def is_written(folder: str | os.PathLike) -> bool:
  """Returns whether a run of ours wrote this folder or is writing it.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   is_written(place)
  False
  """
  return (Path(folder) / INCOMPLETE).is_file() or read_manifest(folder) is not None
