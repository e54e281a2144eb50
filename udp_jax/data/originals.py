"""Whether pictures can still be had: those of a clean reference, those that files were made of."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
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
  sources, origin = _fields(manifest, "sources"), _fields(manifest, "origin")
  found = []
  for file, entry in entries.items():
    if (clean / file).is_file():
      source = _fields(entry, "source") or _fields(sources, file)
      why = _why_lost(source) if source else _why_lost_before(clean, file, entry, origin)
      if why:
        found.append((file, why))
  return found


def copies(
  folder: Path,
  workdir: Path | None = None,
  sources: Mapping[str, Mapping[str, Any]] | None = None,
  sets: tuple[str, ...] = (),
) -> frozenset[str]:
  """Hashes by which `output.check_replaced` knows what may go, as its picture is elsewhere too.

  They are of files and of pixels: of what a run reads, and of what work folders say. Ask before a
  work folder is cleared.

  Args:
    folder: the output that is to be replaced or extended.
    workdir: of the run, if it is not the one beside the folder.
    sources: of `picture_folder.source_of`, with their folders, of what the run reads.
    sets: hashes of whole sets of pictures that the run reads.
  """
  sources = sources or {}
  known = {*sets, *(hash for source in sources.values() for hash in _hashes(source))}
  here = {os.path.realpath(_place(source)) for source in sources.values() if "folder" in source}
  manifest = output.read_manifest(folder) or {}
  origin = _fields(manifest, "origin")
  listed = [entry for entry in manifest.get("images", []) if is_record(entry)]
  before = source_folder(origin)  # Absolute in folders of older versions only.
  for work in dict.fromkeys([folder.with_name(f"{folder.name}.work"), workdir or folder]):
    if work == folder or not work.is_dir():
      continue
    for source, file in _kept(work):
      if file is not None or _is_there(source, here):
        known.update(_hashes(source))
    clean = output.read_manifest(work / "clean") or {}
    kept = {e["file"] for e in clean.get("images", []) if (work / "clean" / e["file"]).is_file()}
    # Of one set of pictures, whose files do not say what they were made of.
    if _fields(clean, "origin").get("sha256") == origin.get("sha256", ""):
      known.update(e["sha256"] for e in listed if not e.get("source") and e["file"] in kept)
  named = str(origin.get("source", "")).removeprefix(_FOLDER)
  if before is not None and Path(named).is_absolute():
    for entry in listed:
      source = {"folder": before, **_fields(entry, "source")}
      if "file" not in source:
        gone = _why_lost_before(Path(), entry["file"], {}, origin)
        known.update(() if gone else {entry["sha256"]})
      elif _is_there(source, here):
        known.update(_hashes(source))
  return frozenset(known)


def _kept(work: Path) -> Iterator[tuple[Mapping[str, Any], Path | None]]:
  """What records of a work folder say of sources, and the clean reference of each, if there."""
  clean = output.read_manifest(work / "clean") or {}
  entries = [*clean.get("images", [])]
  for records in (work / "stages", work / "records"):
    for path in sorted(records.rglob("*.json")) if records.is_dir() else []:
      try:
        entry = files.read_json(path)
      except UserError:
        continue
      if is_record(entry):
        entries.append(entry)
  sources = _fields(clean, "sources")
  for entry in entries:
    source = _fields(entry, "source") or _fields(sources, entry["file"])
    if not _hashes(source):
      continue
    path = work / "clean" / entry["file"]
    # A record of a protected file has another hash than the clean reference of its name.
    whole = path.is_file() and file_sha256(path) == entry.get("sha256")
    yield source, path if whole else None


def _fields(content: Mapping[str, Any], name: str) -> dict[str, Any]:
  """A group of fields of JSON that anyone may have edited; empty if it is none."""
  found = content.get(name)
  return found if isinstance(found, dict) else {}


def _hashes(source: Mapping[str, Any]) -> set[str]:
  found = (source.get(name) for name in ("sha256", "pixels_sha256"))
  return {hash for hash in found if isinstance(hash, str) and hash}


def _place(source: Mapping[str, Any]) -> Path:
  return Path(source["folder"], source["file"])


def _says_where(source: Mapping[str, Any]) -> bool:
  given = (source.get(name) for name in ("folder", "file", "sha256"))
  return all(isinstance(text, str) and text and "\0" not in text for text in given)


def _is_there(source: Mapping[str, Any], here: Collection[str]) -> bool:
  """Whether a source is where it was; one that its owner changed there is the run's to replace."""
  if not _says_where(source):
    return False
  return os.path.realpath(_place(source)) in here or not _why_lost(source)


def _why_lost(source: Mapping[str, Any]) -> str:
  if not _says_where(source):
    return "nothing says where it came from"
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
