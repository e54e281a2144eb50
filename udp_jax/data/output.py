"""Claiming an output folder, recognising what is in one, and never removing a user's files.

Three rules, for every run that writes a folder:

* A file is ours if its bytes are those that we wrote: the manifest of a finished folder, or the
  journal of one that is being written, has its hash. A name alone says nothing, nor does damage.
* A file of ours is replaced or deleted only while the picture that it was made of is somewhere
  else: among what the run reads, or where a work folder says (`originals.copies`).
* A clean reference is no output: only the run whose work folder it stands in writes it.

The journal: the hidden file `.incomplete` lists what is to come, and what was there before; files
of each process list what was written since, in lines that are written before the file appears.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from udp_jax import processes
from udp_jax.data import files, image_set, locks
from udp_jax.errors import OutputError

FORMAT = 1
MANIFEST = "manifest.json"
INCOMPLETE = ".incomplete"
CLEAN = "clean"
# Methods whose pictures are made from nothing that could be lost.
_MADE_UP = frozenset({"samples"})
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
  if method == CLEAN:
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
  """Files that a manifest lists and that are missing, or have other bytes."""
  folder = Path(folder)
  return [
    entry["file"]
    for entry in manifest["images"]
    if not (folder / entry["file"]).is_file() or _sha256(folder / entry["file"]) != _hash(entry)
  ]


def check_output(
  folder: str | os.PathLike,
  *,
  overwrite: bool = False,
  extend: bool = False,
  keep: Collection[str] = (),
  copies: Collection[str] | None = None,
  inputs_follow: bool = False,
) -> None:
  """Raises OutputError if `write_folder` would refuse the folder: ask before a long run.

  Beside the folder's contents this tries to create the folder and a file in it.

  Args:
    folder: to be written.
    overwrite: as in `claim`.
    extend: as in `claim`.
    keep: as in `claim`.
    copies: as in `claim`.
    inputs_follow: what the run reads is not known yet, and this is asked again when it is.
  """
  folder = Path(folder)
  _ours(folder, overwrite, extend, known=None if inputs_follow else keep)
  if not (extend or inputs_follow):
    check_replaced(folder, keep=keep, copies=copies)
  created = _missing(folder)
  try:
    files.write_bytes(folder / ".writable", b"")
  finally:
    remove(folder, [".writable"], created)


def check_replaced(
  folder: Path,
  *,
  keep: Collection[str] = (),
  only: Collection[str] | None = None,
  copies: Collection[str] | None = None,
) -> None:
  """Raises OutputError where a file of ours would go that may be a picture's last copy.

  Args:
    folder: to be written.
    keep: files that stay.
    only: the files that would go; None for all that are not kept.
    copies: of `originals.copies`; None for what the work folder beside this one says.
  """
  manifest = read_manifest(folder) or {}
  if (folder / INCOMPLETE).is_file():
    entries = _written(folder)
  elif manifest:
    entries = [entry for entry in manifest["images"] if is_sound(entry)]
  else:
    return
  if copies is None:
    from udp_jax.data import originals  # Which reads manifests, from here.

    copies = originals.copies(folder)
  going = [e for e in entries if e["file"] not in keep and (only is None or e["file"] in only)]
  lost = {
    entry["file"]
    for entry in going
    if _may_be_last(entry, manifest, copies)
    and (folder / entry["file"]).is_file()
    and _sha256(folder / entry["file"]) == entry["sha256"]
  }
  if lost:
    raise OutputError(
      f"{folder / min(lost)} may be the last copy of a picture: what it was made of is not in the "
      f"input, and no work folder knows another copy ({len(lost)} such files); move it away first, "
      "or choose another output folder"
    )


def _may_be_last(
  entry: Mapping[str, Any], manifest: Mapping[str, Any], copies: Collection[str]
) -> bool:
  source, origin = entry.get("source") or {}, manifest.get("origin") or {}
  known = {entry["sha256"], source.get("sha256"), source.get("pixels_sha256")}
  if str(manifest.get("method")) in _MADE_UP or not known.isdisjoint(copies):
    return False
  if source:
    return True
  # Pictures that were resized by older versions, or of an array. Data sets can be had again.
  named = str(origin.get("source", "")).startswith(("folder ", "npz "))
  return named and str(origin.get("sha256")) not in copies


def check_ours(folder: Path) -> None:
  """Raises OutputError for a folder that holds what `clear` would not delete."""
  _ours(folder, overwrite=True, clean=True)


def clear(folder: Path) -> None:
  """Deletes what runs of ours wrote in a folder, its manifest last, and the folder if empty.

  Raises:
    OutputError: it holds somebody else's files; nothing is deleted then.
  """
  mine = _ours(folder, overwrite=True, clean=True)
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
  replace: Collection[str] = (),
  extend: bool = False,
  copies: Collection[str] | None = None,
) -> list[Path]:
  """Clears what is ours, marks the folder as unfinished, and returns the folders it created.

  Args:
    folder: to be written.
    relatives: files to come.
    overwrite: a finished folder of ours is cleared too.
    keep: those of `relatives` that are as records of a work folder have them, which stay.
    replace: the same, but another picture will take their place.
    extend: a finished folder of ours is opened again; its files stay until they are replaced.
    copies: of `originals.copies`: what may go; None for what the work folder beside this one says.
  """
  old = _ours(folder, overwrite, extend, known={*keep, *replace})
  if extend:
    keep = {*keep, *(name for name in old if not files.is_temporary(name))}
  check_replaced(folder, keep=[name for name in keep if name not in replace], copies=copies)
  cleared = [name for name in old if name != INCOMPLETE and name not in {*keep, *replace}]
  created = _missing(folder)
  try:
    # The new marker lists the old files too, until they are gone: a kill in between stays ours.
    plan = {
      "files": sorted({*old, *relatives} - {INCOMPLETE, MANIFEST}),
      "written": [entry for entry in _written(folder) if entry["file"] in old],
    }
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


def put(
  folder: Path, relative: str, content: bytes, source: Mapping[str, Any] | None = None
) -> str:
  """Writes a file of an output folder, whole or not at all; returns its SHA-256.

  In a folder that is claimed, the journal has the file's hash before the file is there.

  Args:
    folder: of the output.
    relative: path below it.
    content: of the file.
    source: what the file is made of, as in a record.

  Raises:
    OutputError: the place cannot be written, or holds a file that is not ours.
  """
  digest = hashlib.sha256(content).hexdigest()
  path = folder / relative
  if (folder / INCOMPLETE).is_file():
    entry: dict[str, Any] = {"file": relative, "sha256": digest}
    if source:
      entry["source"] = {k: v for k, v in source.items() if k in ("sha256", "pixels_sha256")}
    if path.is_file() and not _is_ours(path, _hashes(_written(folder)).get(relative, ())):
      raise _not_ours(folder, relative, "is not a file that its run wrote")
    line = json.dumps(entry) + "\n"
    with files.output_errors(path):
      with (folder / _journal(processes.index())).open("ab") as file:
        file.write(line.encode())
  files.write_bytes(path, content)
  return digest


def finish(folder: Path) -> None:
  """Removes the marker and the journal of a folder whose manifest is written."""
  with files.output_errors(folder):
    (folder / INCOMPLETE).unlink(missing_ok=True)
    for path in _journals(folder):
      path.unlink(missing_ok=True)


def remove(folder: Path, relatives: Sequence[str], created: Sequence[Path]) -> None:
  """Removes our own files, the subfolders that they leave empty, and folders we created."""
  subfolders: set[PurePosixPath] = set()
  if INCOMPLETE in relatives:
    relatives = [*relatives, *(path.name for path in _journals(folder))]
  for relative in relatives:
    with contextlib.suppress(OSError):
      (folder / relative).unlink()
    subfolders.update(PurePosixPath(relative).parents)
  inner = sorted((s for s in subfolders if s.parts), key=lambda s: -len(s.parts))
  for path in [*(folder / s for s in inner), *created]:
    with contextlib.suppress(OSError):
      path.rmdir()  # only if empty


def _ours(
  folder: Path,
  overwrite: bool,
  extend: bool = False,
  *,
  clean: bool = False,
  known: Collection[str] | None = (),
) -> list[str]:
  """Files of ours that a new writing replaces; raises OutputError if others are in the way.

  With `clean` the folder may be a clean reference: the caller knows that no picture is lost. Files
  in `known` are as records have them; None for records that are yet to be read.
  """
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
  unfinished = INCOMPLETE in present
  written: list[dict[str, Any]] = []
  if manifest is not None:
    check_manifest(folder, manifest)
  if unfinished:
    written = _written(folder)
    ours = {INCOMPLETE, *_planned(folder), *(entry["file"] for entry in written)}
    if manifest is not None or MANIFEST not in present:
      ours.add(MANIFEST)
  elif manifest is not None:
    if manifest.get("method") == CLEAN and overwrite and not clean:
      raise OutputError(
        f"cannot write {folder}: it is {describe(folder)}, which no run replaces; choose another "
        "output folder"
      )
    if not (overwrite or extend):
      raise OutputError(f"cannot write {folder}: {_finished(folder, manifest)}")
    written = [*manifest["images"], *_captions(manifest)]
    ours = {MANIFEST, *(entry["file"] for entry in written)}
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
  hashes = _hashes(written)
  if unfinished and known is None:
    known = present
  for name in sorted(
    ours & present - {INCOMPLETE, MANIFEST} - set(known or () if unfinished else ())
  ):
    if not _is_ours(folder / name, hashes.get(name, ())):
      why = f"is not the file that its {MANIFEST} names"
      raise _not_ours(folder, name, "is not a file that its run wrote" if unfinished else why)
  return sorted((ours & present) | temporary)


def _not_ours(folder: Path, name: str, why: str) -> OutputError:
  return OutputError(
    f"cannot write {folder}: {name} {why} (another picture, or damaged); somebody may have no "
    "other copy of it: move it away first"
  )


def _finished(folder: Path, manifest: dict[str, Any]) -> str:
  """What is said of a finished folder that may not be overwritten."""
  text = "it is a finished output already"
  if broken := not_whole(folder, manifest):
    text += f", of which {broken[0]} is missing or not as it was ({len(broken)} such files)"
  return f"{text}; choose another folder or allow overwriting it (--overwrite)"


def check_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
  """Raises OutputError for a manifest that somebody edited so that it says too little."""
  captions = manifest.get("captions", [])
  wrong = "its captions" if not isinstance(captions, list) else ""
  for entry in [*manifest["images"], *(captions if not wrong else [])]:
    if not is_sound(entry):
      file = entry.get("file") if isinstance(entry, dict) else None
      wrong = wrong or f"what it says of {file or 'a caption'}"
  for field in ("origin", "config", "tiling"):
    if not isinstance(manifest.get(field) or {}, dict):
      wrong = wrong or field
  if wrong:
    raise OutputError(
      f"cannot write {folder}: its {MANIFEST} is not as a run wrote it ({wrong}), so nothing says "
      "which files are ours; choose another output folder, or move the manifest away"
    )


def is_sound(entry: Any) -> bool:
  """Whether an entry of a manifest or a journal says of a file which bytes it has."""
  if not isinstance(entry, dict) or not image_set.is_safe_name(entry.get("file")):
    return False
  source = entry.get("source") or {}
  fields = ("file", "sha256", "pixels_sha256", "folder")
  return (
    len(_hash(entry)) == 64
    and isinstance(source, dict)
    and all(isinstance(source.get(field, ""), str) for field in fields)
    and (not source or "sha256" in source)
    and isinstance(entry.get("max_abs_255", 0), int)
  )


def _hash(entry: Mapping[str, Any]) -> str:
  wanted = entry.get("sha256")
  return wanted if isinstance(wanted, str) else ""


def _captions(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
  found = manifest.get("captions", [])
  return found if isinstance(found, list) else []


def _sha256(path: Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _is_ours(path: Path, hashes: Collection[str]) -> bool:
  """Whether a file has one of the hashes; one that is empty holds nothing that could be lost."""
  with files.output_errors(path):
    return not path.stat().st_size or _sha256(path) in hashes


def _hashes(entries: Iterable[Mapping[str, Any]]) -> dict[str, set[str]]:
  found: dict[str, set[str]] = {}
  for entry in entries:
    found.setdefault(entry["file"], set()).add(_hash(entry))
  return found


def _planned(folder: Path) -> list[str]:
  """Files that an unfinished writing had announced."""
  planned = _marker(folder).get("files")
  names = planned if isinstance(planned, list) else []
  return [name for name in names if image_set.is_safe_name(name)]


def _written(folder: Path) -> list[dict[str, Any]]:
  """What the manifest, or the marker and the journal, say of files: "file", "sha256", "source"."""
  manifest = read_manifest(folder)
  entries = [*manifest["images"], *_captions(manifest)] if manifest is not None else []
  before = _marker(folder).get("written")
  entries += before if isinstance(before, list) else []
  for path in _journals(folder):
    for line in path.read_bytes().splitlines():
      with contextlib.suppress(ValueError):  # The last one of a run that was killed.
        entries.append(files.parse_json(line.decode()))
  kept = ("file", "sha256", "source")
  return [{k: entry[k] for k in kept if k in entry} for entry in entries if is_sound(entry)]


def _marker(folder: Path) -> dict[str, Any]:
  try:
    content = files.parse_json((folder / INCOMPLETE).read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return {}
  return content if isinstance(content, dict) else {}


def _journal(process: int) -> str:
  return f".written-{process}{files.TEMPORARY_SUFFIX}"


def _journals(folder: Path) -> list[Path]:
  return sorted(folder.glob(_journal(0).replace("0", "*", 1)))


def _missing(folder: Path) -> list[Path]:
  """The folder and its parents that do not exist yet, innermost first.

  A folder that holds nothing but the lock of this run was made for it.
  """
  new = [path for path in (folder, *folder.parents) if not path.exists()]
  return new or ([folder] if os.listdir(folder) == [locks.LOCK] else [])
