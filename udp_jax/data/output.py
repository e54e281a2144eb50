"""Claiming an output folder, recognising what is in one, and never removing a user's files."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from udp_jax.data import files, image_set
from udp_jax.errors import OutputError

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


def check_output(folder: str | os.PathLike, *, overwrite: bool = False) -> None:
  """Raises OutputError if `write_folder` would refuse the folder: ask before a long run.

  Beside the folder's contents this tries to create the folder and a file in it.
  """
  folder = Path(folder)
  _ours(folder, overwrite)
  created = _missing(folder)
  try:
    files.write_bytes(folder / ".writable", b"")
  finally:
    remove(folder, [".writable"], created)


def claim(
  folder: Path, relatives: Sequence[str], overwrite: bool, *, keep: Collection[str] = ()
) -> list[Path]:
  """Clears what is ours, marks the folder as unfinished, and returns the folders it created.

  Args:
    folder: to be written.
    relatives: files to come.
    overwrite: a finished folder of ours is cleared too.
    keep: those of `relatives` that an earlier writing finished, which stay.
  """
  old = _ours(folder, overwrite)
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


def _ours(folder: Path, overwrite: bool) -> list[str]:
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
  temporary = {name for name in present if name.endswith(files.TEMPORARY_SUFFIX)}
  manifest = read_manifest(folder)
  if INCOMPLETE in present:
    ours = {INCOMPLETE, MANIFEST, *_planned(folder)}
  elif manifest is not None:
    if not overwrite:
      raise OutputError(
        f"cannot write {folder}: it is a finished output already; choose another folder or allow "
        "overwriting it"
      )
    ours = {MANIFEST, *(entry["file"] for entry in manifest["images"])}
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
  return sorted((ours & present) | temporary)


def _planned(folder: Path) -> list[str]:
  """Files that an unfinished writing had announced."""
  try:
    planned = files.parse_json((folder / INCOMPLETE).read_text(encoding="utf-8"))["files"]
  except (OSError, ValueError, KeyError, TypeError):
    return []
  return [name for name in planned if image_set.is_safe_name(name)]


def _missing(folder: Path) -> list[Path]:
  """The folder and its parents that do not exist yet, innermost first."""
  return [path for path in (folder, *folder.parents) if not path.exists()]
