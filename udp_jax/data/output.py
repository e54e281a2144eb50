"""Claims an output folder, recognises its files, and never removes a user's files.

Three rules hold for every run that writes a folder:

* A file is ours if its hash is recorded, in the manifest of a finished folder or the journal of an
  unfinished one. A name alone proves nothing, and damage does not make a file ours.
* A file of ours is replaced or deleted only while its source picture exists elsewhere: among the
  run's inputs, or where a work folder says (`originals.copies`).
* A clean reference is not an output: only the run that owns its work folder writes it.

The hidden file `.incomplete` lists the planned files and those that were there before. Journal
files, one per process, list the files written since; a line is written before its file appears.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from udp_jax.data import marks, naming
from udp_jax.data.marks import CLEAN, INCOMPLETE, MANIFEST
from udp_jax.errors import OutputError
from udp_jax.runtime import files, locks, processes

# Methods whose pictures have no source that could be lost.
_MADE_UP = frozenset({"samples"})
# Files that file managers leave everywhere; they do not make a folder "in use".
_LITTER = frozenset({"Thumbs.db", "desktop.ini"})


def not_whole(folder: str | os.PathLike, manifest: dict[str, Any]) -> list[str]:
  """Returns the files of a manifest that are missing or have other bytes.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   not_whole(place, {"images": [{"file": "a.png", "sha256": "0"}]})
  ['a.png']
  """
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
  """Raises OutputError if `write_folder` would refuse the folder; call it before a long run.

  It also tries to create the folder and a file in it.

  Args:
    folder: the folder to be written.
    overwrite: whether a finished folder of ours may be replaced.
    extend: whether a finished folder of ours is opened again.
    keep: files of ours to keep, relative to the folder.
    copies: hashes of pictures that exist elsewhere too, from `originals.copies`.
    inputs_follow: whether the inputs are still unknown; the caller then checks again later.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   check_output(f"{place}/new")
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
  """Raises OutputError if a file of ours would be lost that may be a picture's last copy.

  Args:
    folder: the folder to be written.
    keep: files that stay.
    only: the files that would be lost; None for all files not in `keep`.
    copies: hashes of pictures that exist elsewhere too, from `originals.copies`; None asks the work
      folder beside this one.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   check_replaced(Path(place))
  """
  manifest = marks.read_manifest(folder) or {}
  if (folder / INCOMPLETE).is_file():
    entries = _written(folder)
  elif manifest:
    entries = [entry for entry in manifest["images"] if is_sound(entry)]
  else:
    return
  if copies is None:
    from udp_jax.data import originals  # Needed in this case only.

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
  # No source: from an array, or resized by an older version. Data sets can be loaded again.
  named = str(origin.get("source", "")).startswith(("folder ", "npz "))
  return named and str(origin.get("sha256")) not in copies


def check_ours(folder: Path) -> None:
  """Raises OutputError if a folder holds files that `clear` would not delete.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   check_ours(Path(place))
  """
  _ours(folder, overwrite=True, clean=True)


def clear(folder: Path) -> None:
  """Deletes what our runs wrote in a folder, its manifest last, and the folder if it is empty.

  Raises:
    OutputError: the folder holds foreign files; nothing is deleted then.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   (Path(place) / "out").mkdir()
  ...   clear(Path(place) / "out")
  ...   (Path(place) / "out").exists()
  False
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
  """Clears our files, marks the folder as unfinished, and returns the folders it created.

  Args:
    folder: the folder to be written.
    relatives: planned files.
    overwrite: whether to clear a finished folder of ours too.
    keep: files in `relatives` that match their records and stay.
    replace: files like those in `keep`, but another picture will replace them.
    extend: whether to reopen a finished folder of ours; its files stay until they are replaced.
    copies: hashes of pictures that may be replaced, from `originals.copies`; None asks the work
      folder beside this one.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   created = claim(Path(place) / "out", ["a.png"], overwrite=False)
  ...   [folder.name for folder in created]
  ['out']
  """
  old = _ours(folder, overwrite, extend, known={*keep, *replace})
  if extend:
    keep = {*keep, *(name for name in old if not files.is_temporary(name))}
  check_replaced(folder, keep=[name for name in keep if name not in replace], copies=copies)
  cleared = [name for name in old if name != INCOMPLETE and name not in {*keep, *replace}]
  created = _missing(folder)
  try:
    # The new marker also lists the old files, so that they stay ours after a kill in between.
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
  """Writes a file of an output folder atomically and returns its SHA-256.

  In a claimed folder, the journal records the file's hash before the file appears.

  Args:
    folder: the output folder.
    relative: path of the file below the folder.
    content: the file's bytes.
    source: what the file is made of, as in a record.

  Raises:
    OutputError: the file cannot be written, or a foreign file is in its place.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   _ = claim(Path(place) / "out", ["a.txt"], overwrite=False)
  ...   put(Path(place) / "out", "a.txt", b"")[:8]
  'e3b0c442'
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
  """Removes the marker and journals of a folder whose manifest is written.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   _ = claim(Path(place) / "out", ["a.png"], overwrite=False)
  ...   finish(Path(place) / "out")
  ...   [*(Path(place) / "out").iterdir()]
  []
  """
  with files.output_errors(folder):
    (folder / INCOMPLETE).unlink(missing_ok=True)
    for path in _journals(folder):
      path.unlink(missing_ok=True)


def remove(folder: Path, relatives: Sequence[str], created: Sequence[Path]) -> None:
  """Removes our files, the subfolders that this leaves empty, and folders that we created.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   created = claim(Path(place) / "out", ["a.png"], overwrite=False)
  ...   remove(Path(place) / "out", [INCOMPLETE], created)
  ...   (Path(place) / "out").exists()
  False
  """
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
  """Returns our files that a new run replaces; raises OutputError if other files are in the way.

  With `clean`, the folder may be a clean reference: the caller has checked that no picture is lost.
  Files in `known` match their records; None means that the records are read later.
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
  manifest = marks.read_manifest(folder)
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
        f"cannot write {folder}: it is {marks.describe(folder)}, which no run replaces; choose "
        "another output folder"
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
  """Returns the message for a finished folder that may not be overwritten."""
  text = "it is a finished output already"
  if broken := not_whole(folder, manifest):
    text += f", of which {broken[0]} is missing or not as it was ({len(broken)} such files)"
  return f"{text}; choose another folder or allow overwriting it (--overwrite)"


def check_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
  """Raises OutputError if a manifest was edited so that it no longer identifies our files.

  >>> check_manifest(Path("out"), {"images": [{"file": "a.png", "sha256": "0" * 64}]})
  """
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
  """Returns whether an entry of a manifest or journal is valid and has its file's hash.

  >>> is_sound({"file": "a.png", "sha256": "0" * 64}), is_sound({"file": "a.png"})
  (True, False)
  """
  if not isinstance(entry, dict) or not naming.is_safe_name(entry.get("file")):
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
  """Returns whether a file has one of the hashes, or is empty, so that nothing can be lost."""
  with files.output_errors(path):
    return not path.stat().st_size or _sha256(path) in hashes


def _hashes(entries: Iterable[Mapping[str, Any]]) -> dict[str, set[str]]:
  found: dict[str, set[str]] = {}
  for entry in entries:
    found.setdefault(entry["file"], set()).add(_hash(entry))
  return found


def _planned(folder: Path) -> list[str]:
  """Returns the planned files of an unfinished folder."""
  planned = _marker(folder).get("files")
  names = planned if isinstance(planned, list) else []
  return [name for name in names if naming.is_safe_name(name)]


def _written(folder: Path) -> list[dict[str, Any]]:
  """Returns entries of the manifest, the marker and the journals: "file", "sha256", "source"."""
  manifest = marks.read_manifest(folder)
  entries = [*manifest["images"], *_captions(manifest)] if manifest is not None else []
  before = _marker(folder).get("written")
  entries += before if isinstance(before, list) else []
  for path in _journals(folder):
    for line in path.read_bytes().splitlines():
      with contextlib.suppress(ValueError):  # A kill may have cut the last line short.
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
  """Returns the folder and its parents that do not exist yet, innermost first.

  A folder that holds only this run's lock was created for the lock, so it counts as new.
  """
  new = [path for path in (folder, *folder.parents) if not path.exists()]
  return new or ([folder] if os.listdir(folder) == [locks.LOCK] else [])
