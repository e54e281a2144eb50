"""Whether the pictures of a clean reference can still be had from where they came."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from udp_jax.data import files, image_set, images, output
from udp_jax.errors import UserError

_FOLDER = "folder "
_NPZ = "npz "


def file_sha256(path: Path) -> str:
  """SHA-256 of a file's bytes, as hexadecimal text."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def picture_sha256(picture: images.Picture) -> str:
  """SHA-256 of a picture's pixels and its transparency, as hexadecimal text."""
  digest = image_set.pixels_sha256(picture.pixels)
  if picture.alpha is not None:
    digest += image_set.pixels_sha256(picture.alpha)
  return hashlib.sha256(digest.encode()).hexdigest()


def is_record(content: Mapping[str, Any]) -> bool:
  """Whether a JSON object is the record of a picture that was written."""
  return isinstance(content.get("file"), str) and isinstance(content.get("sha256"), str)


def source_folder(origin: Mapping[str, Any]) -> str | None:
  """Absolute path of the folder that an origin names; None for other sources."""
  source = str(origin.get("source", ""))
  return str(Path(source.removeprefix(_FOLDER)).resolve()) if source.startswith(_FOLDER) else None


def sources_of(pictures: image_set.ImageSet) -> dict[str, dict[str, str]]:
  """For the manifest of a clean reference: which file of which folder each picture was."""
  folder = source_folder(pictures.origin)
  if folder is None or pictures.metadata is None:
    return {}
  found = {}
  for name, extras in zip(pictures.names, pictures.metadata):
    path = Path(folder, extras.file)
    if path.is_file():
      source = {"folder": folder, "file": extras.file, "sha256": file_sha256(path)}
      found[f"{name}.png"] = source
  return found


def lost(clean: Path, records: Path) -> list[tuple[str, str]]:
  """Pictures of a clean reference that are nowhere else: (file in the folder, why).

  Args:
    clean: a folder that a run wrote, finished or not.
    records: of its files, for one that is not finished.
  """
  if not clean.is_dir():
    return []
  manifest = output.read_manifest(clean) or {}
  entries = {entry["file"]: entry for entry in manifest.get("images", [])}
  for path in sorted(records.rglob("*.json")) if records.is_dir() else []:
    entry = files.read_json(path)
    if is_record(entry):
      entries.setdefault(entry["file"], entry)
  sources, origin = manifest.get("sources", {}), manifest.get("origin") or {}
  found = []
  for file, entry in entries.items():
    if (clean / file).is_file():
      source = entry.get("source") or sources.get(file)
      why = _why_lost(source) if source else _why_lost_before(clean, file, entry, origin)
      if why:
        found.append((file, why))
  return found


def _why_lost(source: Mapping[str, Any]) -> str:
  path = Path(source["folder"], source["file"])
  if not path.is_file():
    return f"{path} is gone"
  if file_sha256(path) == source["sha256"]:
    return ""
  wanted = source.get("pixels_sha256")
  return "" if wanted and wanted == _pixels(path) else f"{path} is another picture now"


def _why_lost_before(
  clean: Path, file: str, entry: Mapping[str, Any], origin: Mapping[str, Any]
) -> str:
  """The same for folders of versions that did not write down where each picture came from."""
  source = str(origin.get("source", ""))
  if source.startswith(_NPZ):
    path = Path(source.removeprefix(_NPZ))
    return "" if path.exists() else f"{path} is gone"
  folder = source_folder(origin)
  if folder is None:
    return "" if source else "nothing says where it came from"
  from udp_jax.data import folder as folders

  try:
    names = {found.name: found.path for found in folders.scan(folder).files}
  except UserError:
    return f"{folder} is gone"
  path = names.get(file.removesuffix(".png"), Path())
  if not path.is_file():
    return f"{folder} no longer has it"
  # Of a resized picture there is nothing to compare.
  same = "width" not in entry or _pixels(path) == _pixels(clean / file)
  return "" if same else f"{path} is another picture now"


def _pixels(path: Path) -> str:
  try:
    return picture_sha256(images.read_image(path))
  except UserError as error:
    return f"unreadable: {error}"
