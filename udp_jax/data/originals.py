"""Finds out whether originals still exist, for clean references and for files made from them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from udp_jax.data import image_set, images, marks
from udp_jax.errors import UserError
from udp_jax.runtime import files

_FOLDER = "folder "
_NPZ = "npz "


def file_sha256(path: Path) -> str:
  """Returns the SHA-256 of a file's bytes, as hexadecimal text.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   (Path(place) / "a").touch()
  ...   file_sha256(Path(place) / "a")[:8]
  'e3b0c442'
  """
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def picture_sha256(picture: images.Picture) -> str:
  """Returns the SHA-256 of a picture's pixels and transparency, as hexadecimal text.

  >>> import numpy as np
  >>> len(picture_sha256(images.Picture(np.zeros((2, 2, 3), np.uint8))))
  64
  """
  digest = image_set.pixels_sha256(picture.pixels)
  if picture.alpha is not None:
    digest += image_set.pixels_sha256(picture.alpha)
  return hashlib.sha256(digest.encode()).hexdigest()


def is_record(content: Mapping[str, Any]) -> bool:
  """Returns whether a JSON object is the record of a written picture.

  >>> is_record({"images": []})
  False
  """
  return isinstance(content.get("file"), str) and isinstance(content.get("sha256"), str)


def source_folder(origin: Mapping[str, Any]) -> str | None:
  """Returns the absolute path of the folder that an origin names; None for other sources.

  >>> source_folder({"source": "builtin"}) is None
  True
  """
  source = str(origin.get("source", ""))
  return str(Path(source.removeprefix(_FOLDER)).resolve()) if source.startswith(_FOLDER) else None


def sources_of(pictures: image_set.ImageSet) -> dict[str, dict[str, str]]:
  """Returns the source folder and file of each picture, for the manifest of a clean reference.

  >>> import numpy as np
  >>> sources_of(image_set.ImageSet(np.zeros((1, 2, 2, 3), np.uint8), ["a"]))
  {}
  """
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
  """Returns pictures of a clean reference that exist nowhere else, as (file, reason).

  Args:
    clean: a folder that a run wrote, finished or not.
    records: folder with the records of its files, used if it is not finished.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   lost(Path(place) / "clean", Path(place) / "records")
  []
  """
  if not clean.is_dir():
    return []
  manifest = marks.read_manifest(clean) or {}
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
  """Returns hashes of pictures that exist elsewhere too, which `output.check_replaced` may replace.

  They are hashes of files and of pixels, from the run's inputs and from work folders. Call this
  before a work folder is cleared.

  Args:
    folder: the output folder to be replaced or extended.
    workdir: the run's work folder, if it is not the one beside `folder`.
    sources: the run's inputs by name, from `picture_folder.source_of`, with folders.
    sets: hashes of whole picture sets that the run reads.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   copies(Path(place) / "out")
  frozenset()
  """
  sources = sources or {}
  known = {*sets, *(hash for source in sources.values() for hash in _hashes(source))}
  here = {os.path.realpath(_place(source)) for source in sources.values() if "folder" in source}
  manifest = marks.read_manifest(folder) or {}
  origin = _fields(manifest, "origin")
  listed = [entry for entry in manifest.get("images", []) if is_record(entry)]
  before = source_folder(origin)  # Only older versions wrote an absolute path.
  for work in dict.fromkeys([folder.with_name(f"{folder.name}.work"), workdir or folder]):
    if work == folder or not work.is_dir():
      continue
    for source, file in _kept(work):
      if file is not None or _is_there(source, here):
        known.update(_hashes(source))
    clean = marks.read_manifest(work / "clean") or {}
    kept = {e["file"] for e in clean.get("images", []) if (work / "clean" / e["file"]).is_file()}
    # Files made from a picture set of one size do not record their sources.
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
  """Yields the sources in a work folder's records, each with its clean reference or None."""
  clean = marks.read_manifest(work / "clean") or {}
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
    # A protected file's record has another hash than the clean reference of the same name.
    whole = path.is_file() and file_sha256(path) == entry.get("sha256")
    yield source, path if whole else None


def _fields(content: Mapping[str, Any], name: str) -> dict[str, Any]:
  """Returns a JSON object's field if it is an object, else {}: anyone may have edited the file."""
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
  """Returns whether a source still exists unchanged, or is one of the inputs at paths `here`."""
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
  """Like `_why_lost`, for folders of older versions that did not record each picture's source."""
  source = str(origin.get("source", ""))
  if source.startswith(_NPZ):
    path = Path(source.removeprefix(_NPZ))
    return "" if path.exists() else f"{path} is gone"
  folder = source_folder(origin)
  if folder is None:
    return "" if source else "nothing says where it came from"
  from udp_jax.data import listing

  try:
    names = {found.name: found.path for found in listing.scan(folder).files}
  except UserError:
    return f"{folder} is gone"
  path = names.get(file.removesuffix(".png"), Path())
  if not path.is_file():
    return f"{folder} no longer has it"
  # The pixels of a resized picture cannot be compared with the file's.
  same = "width" not in entry or _pixels(path) == _pixels(clean / file)
  return "" if same else f"{path} is another picture now"


def _pixels(path: Path) -> str:
  try:
    return picture_sha256(images.read_image(path))
  except UserError as error:
    return f"unreadable: {error}"
