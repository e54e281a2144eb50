"""Folders of pictures of any sizes, read and written one file at a time.

Beside an `ImageSet`, which holds pictures of one size in memory, this is for pictures as they come.
An output folder looks like those of `data.manifest`; what differs is that its files appear one by
one over as many runs as it takes. A file that is there and whole has a *record* in a working
folder, and is not made again.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from udp_jax.data import files, images, manifest, naming, originals, output
from udp_jax.data import folder as folders
from udp_jax.data.captions import NONE_BESIDE, Beside
from udp_jax.errors import OutputError


class PictureFile(NamedTuple):
  """A usable picture, whose pixels stay on the disk.

  Attributes:
    name: unique, relative, without extension.
    path: of the file.
    relative: path below the folder.
    height: upright, pixels.
    width: upright, pixels.
    sha256: of its pixels and its transparency.
    file_sha256: of the file's bytes.
    notes: what reading it changes, converts or leaves out.
  """

  name: str
  path: Path
  relative: str
  height: int
  width: int
  sha256: str
  file_sha256: str = ""
  notes: tuple[str, ...] = ()


class PictureFolder(NamedTuple):
  """The usable pictures of a folder, of any sizes.

  Attributes:
    folder: where they are.
    files: the pictures, in order.
    origin: what `ImageSet.origin` says of a source.
    beside: captions that stand beside them.
  """

  folder: Path
  files: tuple[PictureFile, ...]
  origin: dict[str, Any]
  beside: Beside = NONE_BESIDE


def list_pictures(
  folder: str | os.PathLike,
  *,
  limit: int | None = None,
  seed: int = 0,
  strict: bool = False,
  classes: Sequence[str] | None = None,
) -> PictureFolder:
  """Decodes every picture of a folder once, one at a time, and keeps none of them in memory.

  Arguments and errors are those of `sources.load`; pictures of different sizes are no error here.
  """
  folder = Path(folder)

  def measure(picture: images.Picture) -> tuple[int, int, str]:
    height, width = picture.pixels.shape[:2]
    return height, width, originals.picture_sha256(picture)

  found = folders.select(
    folder, limit=limit, seed=seed, strict=strict, classes=classes, keep=measure
  )
  files = tuple(
    PictureFile(*file, height, width, digest, originals.file_sha256(file.path), notes)
    for file, (height, width, digest), notes in zip(found.files, found.kept, found.notes)
  )
  identity = "\n".join(f"{file.relative}\0{file.sha256}" for file in files)
  origin = {
    "source": naming.readable(f"folder {folder}"),
    "count": len(files),
    "sha256": hashlib.sha256(identity.encode()).hexdigest(),
    "classes": found.class_names or None,
    **found.origin,
  }
  return PictureFolder(folder, files, origin, found.beside)


def read(path: Path) -> images.Picture:
  """`images.read_image` for large pictures: Pillow warns from 89 megapixels on."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    return images.read_image(path)


def finished(folder: Path, records: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
  """Records of the files that earlier runs wrote and that are in the folder as they were written.

  Args:
    folder: of the pictures.
    records: the working folder that `write` was given.
    names: without extension.
  """
  found: dict[str, dict[str, Any]] = {}
  for name in names:
    record, path = _record(records, name), folder / f"{name}.png"
    if record.is_file() and path.is_file():
      entry = files.read_json(record)
      if _is_record(entry, name) and entry["sha256"] == manifest.file_sha256(path):
        found[name] = entry
  return found


class Progress(NamedTuple):
  """What of a folder's pictures is made, and what of it holds for the sources as they are now.

  Attributes:
    entries: records of files that are whole, and are of the pictures as they are.
    stale: names in `entries` whose source has the same pixels and other metadata.
    changed: names of whole files whose picture, or whatever else they were made of, has changed.
    others: records of whole files whose pictures are no longer among the sources, by name.
  """

  entries: dict[str, dict[str, Any]]
  stale: tuple[str, ...]
  changed: tuple[str, ...]
  others: dict[str, dict[str, Any]]

  def is_done(self, names: Iterable[str]) -> bool:
    """Whether nothing is left to do for these pictures."""
    return not self.stale and all(name in self.entries for name in names)


def source_of(file: PictureFile, **more: Any) -> dict[str, Any]:
  """For a record: which file, as it is now, a picture is made of; `more` decides the result too.

  The "folder" in `more` is where the file is, which decides nothing, and which manifests of outputs
  do not say.
  """
  return {
    "file": file.relative,
    "sha256": file.file_sha256,
    "pixels_sha256": file.sha256,
    **{name: value for name, value in more.items() if value is not None},
  }


def progress_of(
  folder: Path, records: Path, sources: Mapping[str, Mapping[str, Any]], *, finished: bool = False
) -> Progress:
  """How far earlier runs came with the pictures of `sources`, which have `source_of` by name.

  Args:
    folder: of the pictures.
    records: the working folder that `write` was given.
    sources: of the pictures that are wanted.
    finished: the folder's manifest is one of the same settings: what it lists counts as well.
  """
  known: dict[str, dict[str, Any]] = {}
  if finished:
    listed = (manifest.read_manifest(folder) or {}).get("images", [])
    known = {entry["file"].removesuffix(".png"): entry for entry in listed}
  for path in sorted(records.rglob("*.json")) if records.is_dir() else []:
    entry = files.read_json(path)
    if originals.is_record(entry):
      name = entry["file"].removesuffix(".png")
      # A record of the work folder knows the source's folder as well.
      if name not in known or known[name].get("sha256") == entry["sha256"]:
        known[name] = entry
  known = {
    name: entry
    for name, entry in known.items()
    if output.is_sound(entry)  # Somebody may have edited it.
    and (path := folder / entry["file"]).is_file()
    and manifest.file_sha256(path) == entry.get("sha256")
  }
  entries, stale, changed = {}, [], []
  for name in sources:
    if name not in known:
      continue
    was, now = dict(known[name].get("source") or sources[name]), dict(sources[name])
    if _result(was) != _result(now):
      changed.append(name)
      continue
    entries[name] = known[name]
    if was["sha256"] != now["sha256"]:
      stale.append(name)
  others = {name: entry for name, entry in known.items() if name not in sources}
  return Progress(entries, tuple(stale), tuple(changed), others)


def _result(source: Mapping[str, Any]) -> dict[str, Any]:
  """What of a source decides the pixels that are made of it."""
  return {k: v for k, v in source.items() if k not in ("folder", "file", "sha256")}


def claim(
  folder: Path,
  names: Sequence[str],
  *,
  keep: Iterable[str] = (),
  replace: Iterable[str] = (),
  overwrite: bool = False,
  extend: bool = False,
  copies: Collection[str] | None = None,
  beside: Beside = NONE_BESIDE,
) -> list[Path]:
  """Marks the folder as unfinished and clears what is ours but not in `keep`; folders it created.

  With `extend` a finished folder of ours is opened again, and nothing in it is cleared. Pictures of
  names in `replace` stay until they are written anew. Captions in `beside` are announced like the
  pictures; `finish` writes them. `copies` are of `originals.copies`.

  Raises:
    OutputError: the folder cannot be written, or holds somebody else's files, or the last copy of a
      picture.
  """
  relatives = [f"{name}.png" for name in names]
  parents = {str(parent) for name in names for parent in PurePosixPath(name).parents}
  if clash := parents.intersection(relatives):
    raise OutputError(
      f"{sorted(clash)[0]} would be both a file and a folder; rename one of the source's images"
    )
  announced = [*relatives, *beside.render(names)]
  return output.claim(
    folder,
    announced,
    overwrite,
    keep=[f"{name}.png" for name in keep],
    replace=[f"{name}.png" for name in replace],
    extend=extend,
    copies=copies,
  )


def withdraw(folder: Path, created: Sequence[Path]) -> None:
  """Takes back a `claim` after which nothing was written."""
  output.remove(folder, [manifest.INCOMPLETE], created)


def write(
  folder: Path,
  records: Path,
  name: str,
  picture: images.Picture,
  *,
  clean: np.ndarray | None = None,
  radius_255: float | None = None,
  limit: np.ndarray | None = None,
  source: Mapping[str, Any] | None = None,
  notes: Sequence[str] = (),
) -> dict[str, Any]:
  """Writes one picture, reads it back, checks and measures it, and writes its record.

  Args:
    folder: of the pictures, claimed.
    records: working folder.
    name: relative, without extension.
    picture: uint8 pixels and what is saved with them.
    clean: uint8 (H, W, 3) to measure against.
    radius_255: budget in 8-bit levels that the file must keep.
    limit: uint8 (H, W, 1), the largest change of every pixel in levels, where that is less.
    source: of `source_of`, for the record.
    notes: on the picture, for the record.

  Returns:
    The record: "file", "sha256", "width", "height", "source" if given, "notes" where there are any
    and, with `clean`, "max_abs_255" (levels) and "psnr" (dB; null when identical), measured on the
    file's pixels.

  Raises:
    OutputError: the place is full or read-only.
    RuntimeError: the file breaks the budget or does not hold what was written: a bug.
  """
  path = folder / f"{name}.png"
  height, width = picture.pixels.shape[:2]
  content = images.encode_png(
    picture.pixels,
    alpha=picture.alpha,
    icc_profile=picture.icc_profile,
    exif=picture.exif,
    chunks=picture.chunks,
    grey=picture.grey,
  )
  digest = output.put(folder, f"{name}.png", content, source)
  saved = read(path)
  same = np.array_equal(saved.pixels, picture.pixels) and (
    picture.alpha is None or np.array_equal(saved.alpha, picture.alpha)  # type: ignore[arg-type]
  )
  if not same:
    raise RuntimeError(f"{path}: the file does not hold the pixels that were written")
  entry: dict[str, Any] = {"file": f"{name}.png", "sha256": digest}
  entry |= {"width": width, "height": height}
  if source is not None:
    entry["source"] = dict(source)
  if notes:
    entry["notes"] = list(notes)
  if clean is not None:
    entry["max_abs_255"], entry["psnr"] = _difference(saved.pixels, clean)
    if radius_255 is not None and entry["max_abs_255"] > radius_255:
      raise RuntimeError(
        f"{path}: {entry['max_abs_255']} levels from its clean image, over the budget of "
        f"{radius_255:g}"
      )
    if limit is not None:
      manifest.check_limit(path, saved.pixels, clean, limit)
  files.write_json(_record(records, name), entry)
  return entry


def finish(
  folder: Path,
  entries: Sequence[Mapping[str, Any]],
  record: Mapping[str, Any],
  *,
  beside: Beside = NONE_BESIDE,
) -> dict[str, Any]:
  """Writes the captions and manifest.json, which says that the folder is done; returns it.

  Args:
    folder: all of whose files are written.
    entries: of `write`, in the order of the manifest.
    record: what made the pictures, as in `manifest.write_folder`.
    beside: captions, of which those of the pictures are written.
  """
  made = manifest.describe(record, folder)
  made |= manifest.write_captions(folder, [entry["file"] for entry in entries], beside)
  made["images"] = [manifest.listed(entry, record) for entry in entries]
  measured = [entry for entry in entries if "max_abs_255" in entry]
  if measured:
    worst = max(measured, key=lambda entry: entry["max_abs_255"])
    made["worst"] = {"file": worst["file"], "max_abs_255": worst["max_abs_255"]}
  files.write_json(folder / manifest.MANIFEST, made)
  output.finish(folder)
  return made


def is_finished(folder: Path, names: Sequence[str], done: Progress, beside: Beside) -> bool:
  """Whether a finished folder needs nothing: pictures, metadata and captions are as they should be.

  Args:
    folder: with a manifest of the same settings.
    names: of the pictures that are wanted.
    done: of `progress_of`.
    beside: captions that stand beside the sources.
  """
  return done.is_done(names) and not manifest.captions_differ(folder, names, beside)


def _record(records: Path, name: str) -> Path:
  return records / f"{name}.json"


def _is_record(entry: Mapping[str, Any], name: str) -> bool:
  """Whether a file's content is what `write` writes of a picture; otherwise it is made again."""
  levels, psnr = entry.get("max_abs_255", 0), entry.get("psnr")
  sizes = [entry.get(field, 1) for field in ("width", "height")]
  return (
    entry.get("file") == f"{name}.png"
    and isinstance(entry.get("sha256"), str)
    and all(isinstance(value, int) and value >= 0 for value in (levels, *sizes))
    and (psnr is None or (isinstance(psnr, int | float) and math.isfinite(psnr)))
  )


def _difference(first: np.ndarray, second: np.ndarray) -> tuple[int, float | None]:
  """Largest difference in levels, and the PSNR in dB; by rows, to need little memory."""
  largest, squares = 0, 0
  for a, b in zip(
    np.array_split(first, -(-len(first) // 256)), np.array_split(second, -(-len(second) // 256))
  ):
    difference = np.abs(a.astype(np.int32) - b)
    largest = max(largest, int(difference.max()))
    squares += int(np.square(difference, dtype=np.int64).sum())
  if not squares:
    return largest, None
  return largest, round(10 * math.log10(255**2 * first.size / squares), 4)
