"""Claiming an output folder, recognising what is in one, and never removing a user's files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from udp_jax.data import files, image_set, images, locks
from udp_jax.errors import OutputError, UserError

FORMAT = 1
MANIFEST = "manifest.json"
INCOMPLETE = ".incomplete"
# Files that file managers leave everywhere; they make no folder "in use".
_LITTER = frozenset({"Thumbs.db", "desktop.ini"})


def read_manifest(folder: str | os.PathLike) -> dict[str, Any] | None:
  """The folder's manifest, or None if there is none of ours."""
  try:
    manifest = files.parse_json((Path(folder) / MANIFEST).read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None
  if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
    return None
  entries = manifest.get("images")
  sound = isinstance(entries, list) and all(
    isinstance(entry, dict) and image_set.is_safe_name(entry.get("file")) for entry in entries
  )
  return manifest if sound and entries and manifest.get("complete") is True else None


def is_complete(folder: str | os.PathLike) -> bool:
  """Whether the folder was finished: a manifest of ours, and every file that it lists."""
  manifest = read_manifest(folder)
  return manifest is not None and all(
    (Path(folder) / entry["file"]).is_file() for entry in manifest["images"]
  )


def describe(folder: str | os.PathLike) -> str | None:
  """What a finished folder of ours is, in words; None for any other folder.

  For example "a folder that udp_jax protected by eudp, radius 16".
  """
  manifest = read_manifest(folder)
  if manifest is None:
    return None
  method = manifest.get("method")
  if method == "clean":
    return "a clean reference that udp_jax kept"
  if method == "samples":
    return "a folder that udp_jax sampled from a model"
  if isinstance(manifest.get("radius_255"), int | float):
    return f"a folder that udp_jax protected by {method}, radius {manifest['radius_255']:g}"
  return f"a folder that udp_jax purified by {method}" if method else "a folder that udp_jax wrote"


def is_written(folder: str | os.PathLike) -> bool:
  """Whether a run of ours writes, or wrote, this folder."""
  return (Path(folder) / INCOMPLETE).is_file() or read_manifest(folder) is not None


def not_whole(folder: str | os.PathLike, manifest: dict[str, Any]) -> list[str]:
  """Files that a manifest lists and that are missing, or are unreadable with other bytes."""
  folder = Path(folder)
  return [
    entry["file"]
    for entry in manifest["images"]
    if not (folder / entry["file"]).is_file()
    or (_differs(folder, entry) and not _is_readable(folder / entry["file"]))
  ]


def check_output(
  folder: str | os.PathLike, *, overwrite: bool = False, extend: bool = False
) -> None:
  """Raises OutputError if `write_folder` would refuse the folder: ask before a long run.

  Beside the folder's contents this tries to create the folder and a file in it.
  """
  folder = Path(folder)
  _ours(folder, overwrite, extend)
  created = _missing(folder)
  try:
    files.write_bytes(folder / ".writable", b"")
  finally:
    remove(folder, [".writable"], created)


def check_ours(folder: Path) -> None:
  """Raises OutputError for a folder that holds what `clear` would not delete."""
  _ours(folder, overwrite=True)


def clear(folder: Path) -> None:
  """Deletes what runs of ours wrote in a folder, its manifest last, and the folder if empty.

  Raises:
    OutputError: it holds somebody else's files; nothing is deleted then.
  """
  mine = _ours(folder, overwrite=True)
  last = [name for name in (INCOMPLETE, MANIFEST) if name in mine]
  with files.output_errors(folder):
    for name in [*(name for name in mine if name not in last), *last]:
      (folder / name).unlink(missing_ok=True)
  remove(folder, mine, [folder])


def claim(
  folder: Path,
  relatives: Sequence[str],
  overwrite: bool,
  *,
  keep: Collection[str] = (),
  extend: bool = False,
) -> list[Path]:
  """Clears what is ours, marks the folder as unfinished, and returns the folders it created.

  Args:
    folder: to be written.
    relatives: files to come.
    overwrite: a finished folder of ours is cleared too.
    keep: those of `relatives` that an earlier writing finished, which stay.
    extend: a finished folder of ours is opened again; its files stay until they are replaced.
  """
  old = _ours(folder, overwrite, extend)
  if extend:
    keep = {*keep, *(name for name in old if not files.is_temporary(name))}
  cleared = [name for name in old if name != INCOMPLETE and name not in keep]
  created = _missing(folder)
  try:
    # The new marker lists the old files too, until they are gone: a kill in between stays ours.
    plan = {"files": sorted({*old, *relatives} - {INCOMPLETE, MANIFEST})}
    files.write_bytes(folder / INCOMPLETE, json.dumps(plan).encode())
    with files.output_errors(folder):
      for name in [MANIFEST, *cleared]:
        (folder / name).unlink(missing_ok=True)
    remove(folder, cleared, ())  # subfolders now empty
  except BaseException:
    if created:
      remove(folder, [INCOMPLETE], created)
    raise
  return created


def remove(folder: Path, relatives: Sequence[str], created: Sequence[Path]) -> None:
  """Removes our own files, the subfolders that they leave empty, and folders we created."""
  subfolders: set[PurePosixPath] = set()
  for relative in relatives:
    with contextlib.suppress(OSError):
      (folder / relative).unlink()
    subfolders.update(PurePosixPath(relative).parents)
  inner = sorted((s for s in subfolders if s.parts), key=lambda s: -len(s.parts))
  for path in [*(folder / s for s in inner), *created]:
    with contextlib.suppress(OSError):
      path.rmdir()  # only if empty


def _ours(folder: Path, overwrite: bool, extend: bool = False) -> list[str]:
  """Files of ours that a new writing replaces; raises OutputError if others are in the way."""
  with files.output_errors(folder):
    if not folder.exists():
      return []
    if not folder.is_dir():
      raise OutputError(f"cannot write {folder}: it is a file; choose another output folder")
    present = {
      path.relative_to(folder).as_posix()
      for path in folder.rglob("*")
      if not path.is_dir() and path.name not in _LITTER
    }
  temporary = {name for name in present if files.is_temporary(name)}
  manifest = read_manifest(folder)
  if INCOMPLETE in present:
    ours = {INCOMPLETE, MANIFEST, *_planned(folder)}
  elif manifest is not None:
    if not (overwrite or extend):
      raise OutputError(f"cannot write {folder}: {_finished(folder, manifest)}")
    ours = {MANIFEST, *(entry["file"] for entry in manifest["images"])}
    ours |= {entry["file"] for entry in _captions(manifest)}
  else:
    ours = set()
  foreign = sorted(
    name for name in present - ours - temporary if not PurePosixPath(name).name.startswith(".")
  )
  if foreign:
    raise OutputError(
      f"cannot write {folder}: it holds files that are not ours ({foreign[0]}, {len(foreign)} in "
      "all); choose an empty or new folder"
    )
  if INCOMPLETE not in present and manifest is not None:
    _refuse_changed(folder, manifest)
  return sorted((ours & present) | temporary)


def _finished(folder: Path, manifest: dict[str, Any]) -> str:
  """What is said of a finished folder that may not be overwritten."""
  text = "it is a finished output already"
  if broken := not_whole(folder, manifest):
    text += f", of which {broken[0]} is missing or damaged ({len(broken)} such files)"
  return f"{text}; choose another folder or allow overwriting it (--overwrite)"


def _refuse_changed(folder: Path, manifest: dict[str, Any]) -> None:
  """Raises OutputError for a listed file that somebody replaced by a picture or text of theirs."""
  captions = _captions(manifest)
  for entry in [*manifest["images"], *captions]:
    path = folder / entry["file"]
    # What is no picture any more is damage, and nobody's work.
    if path.is_file() and _differs(folder, entry) and (entry in captions or _is_readable(path)):
      raise OutputError(
        f"cannot write {folder}: {entry['file']} is not the file that its {MANIFEST} names; "
        "somebody may have no other copy of it: move it away first"
      )


def _captions(manifest: dict[str, Any]) -> list[dict[str, Any]]:
  """The sound entries of the captions that a manifest lists."""
  return [
    entry
    for entry in manifest.get("captions", [])
    if isinstance(entry, dict) and image_set.is_safe_name(entry.get("file"))
  ]


def _differs(folder: Path, entry: dict[str, Any]) -> bool:
  wanted = entry.get("sha256")
  path = folder / entry["file"]
  return wanted is not None and hashlib.sha256(path.read_bytes()).hexdigest() != wanted


def _is_readable(path: Path) -> bool:
  try:
    images.read_image(path)
  except UserError:
    return False
  return True


def _planned(folder: Path) -> list[str]:
  """Files that an unfinished writing had announced."""
  try:
    planned = files.parse_json((folder / INCOMPLETE).read_text(encoding="utf-8"))["files"]
  except (OSError, ValueError, KeyError, TypeError):
    return []
  return [name for name in planned if image_set.is_safe_name(name)]


def _missing(folder: Path) -> list[Path]:
  """The folder and its parents that do not exist yet, innermost first.

  A folder that holds nothing but the lock of this run was made for it.
  """
  new = [path for path in (folder, *folder.parents) if not path.exists()]
  return new or ([folder] if os.listdir(folder) == [locks.LOCK] else [])
