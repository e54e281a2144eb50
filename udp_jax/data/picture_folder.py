"""Reads and writes folders of pictures of any sizes, one file at a time.

An `ImageSet` holds pictures of one size in memory; this module handles pictures of any size. An
output folder looks like those of `data.manifest`, but its files may appear one by one over several
runs. Each file that is complete has a *record* in a work folder and is not made again.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from udp_jax.data import images, manifest, originals, output
from udp_jax.data.captions import NONE_BESIDE, Beside
from udp_jax.data.picture_files import PictureFile
from udp_jax.errors import OutputError
from udp_jax.runtime import files


def finished(folder: Path, records: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
  """Returns records of files from earlier runs that are in the folder, unchanged.

  Args:
    folder: the pictures' folder.
    records: the work folder given to `write`.
    names: picture names without extension.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   finished(Path(place) / "out", Path(place) / "records", ["a"])
  {}
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
  """Which pictures of a folder are made, and which still match their sources.

  Attributes:
    entries: records of intact files whose sources have the same pixels and settings.
    stale: names in `entries` whose source file changed, but not its pixels (new metadata).
    changed: names of intact files whose picture or settings changed.
    others: records, by name, of intact files whose pictures are no longer among the sources.
  """

  entries: dict[str, dict[str, Any]]
  stale: tuple[str, ...]
  changed: tuple[str, ...]
  others: dict[str, dict[str, Any]]

  def is_done(self, names: Iterable[str]) -> bool:
    """Returns whether all these pictures are made and up to date."""
    return not self.stale and all(name in self.entries for name in names)


def source_of(file: PictureFile, **more: Any) -> dict[str, Any]:
  """Describes a picture's source file for a record; fields in `more` also decide the result.

  "folder" in `more` is the file's folder. It does not affect the result, and manifests of outputs
  omit it.

  >>> file = PictureFile("a", Path("in/a.jpg"), "a.jpg", 8, 8, "0f")
  >>> source_of(file, tile_size=512)["tile_size"]
  512
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
  """Finds which pictures of `sources` earlier runs have made.

  Args:
    folder: the pictures' folder.
    records: the work folder given to `write`.
    sources: the source of each wanted picture by name, from `source_of`.
    finished: whether the folder's manifest has the same settings, so that its entries count too.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   progress_of(Path(place) / "out", Path(place) / "records", {}).is_done([])
  True
  """
  known: dict[str, dict[str, Any]] = {}
  if finished:
    listed = (manifest.read_manifest(folder) or {}).get("images", [])
    known = {entry["file"].removesuffix(".png"): entry for entry in listed}
  for path in sorted(records.rglob("*.json")) if records.is_dir() else []:
    entry = files.read_json(path)
    if originals.is_record(entry):
      name = entry["file"].removesuffix(".png")
      # A record in the work folder also holds the source's folder.
      if name not in known or known[name].get("sha256") == entry["sha256"]:
        known[name] = entry
  known = {
    name: entry
    for name, entry in known.items()
    if output.is_sound(entry)  # The manifest may have been edited by hand.
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
  """Returns the fields of a source that decide the resulting pixels."""
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
  """Marks the folder as unfinished and clears our files except `keep`; returns created folders.

  With `extend`, a finished folder of ours is reopened and nothing is cleared. Pictures in `replace`
  stay until they are rewritten. The captions in `beside` are announced with the pictures; `finish`
  writes them. `copies` comes from `originals.copies`.

  Raises:
    OutputError: the folder cannot be written, holds foreign files, or holds the last copy of a
      picture.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   [folder.name for folder in claim(Path(place) / "out", ["a"])]
  ['out']
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
  """Undoes a `claim` after which nothing was written.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   withdraw(Path(place) / "out", claim(Path(place) / "out", ["a"]))
  ...   (Path(place) / "out").exists()
  False
  """
  output.remove(folder, [manifest.INCOMPLETE], created)


class Bound(NamedTuple):
  """The largest change allowed in a saved picture; None where there is no bound.

  Attributes:
    radius_255: the budget in 8-bit levels.
    limit: uint8 (H, W, 1), the largest change of each pixel in 8-bit levels, where that is less.
  """

  radius_255: float | None = None
  limit: np.ndarray | None = None


def write(
  folder: Path,
  records: Path,
  name: str,
  picture: images.Picture,
  *,
  clean: np.ndarray | None = None,
  bound: Bound = Bound(),
  source: Mapping[str, Any] | None = None,
  notes: Sequence[str] = (),
) -> dict[str, Any]:
  """Writes one picture, reads it back, checks and measures it, and writes its record.

  Args:
    folder: the pictures' folder, already claimed.
    records: work folder for records.
    name: relative name without extension.
    picture: uint8 pixels and the data saved with them.
    clean: uint8 (H, W, 3), the picture to measure against.
    bound: the largest change from `clean` that the file may have.
    source: what the picture is made of, from `source_of`, for the record.
    notes: remarks from reading the picture, for the record.

  Returns:
    The record: "file", "sha256", "width", "height", "source" if given, "notes" if any and, with
    `clean`, "max_abs_255" (levels) and "psnr" (dB; null if identical), measured on the file's
    pixels.

  Raises:
    OutputError: the disk is full or read-only.
    RuntimeError: the file breaks the budget or differs from what was written, which is a bug.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   folder, levels = Path(place) / "out", np.zeros((4, 6, 3), np.uint8)
  ...   _ = claim(folder, ["a"])
  ...   picture = images.Picture(levels + 3)
  ...   made = write(folder, Path(place) / "r", "a", picture, clean=levels, bound=Bound(4))
  >>> made["max_abs_255"], made["width"]
  (3, 6)
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
  saved = images.read_large(path)
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
    if bound.radius_255 is not None and entry["max_abs_255"] > bound.radius_255:
      raise RuntimeError(
        f"{path}: {entry['max_abs_255']} levels from its clean image, over the budget of "
        f"{bound.radius_255:g}"
      )
    if bound.limit is not None:
      manifest.check_limit(path, saved.pixels, clean, bound.limit)
  files.write_json(_record(records, name), entry)
  return entry


def finish(
  folder: Path,
  entries: Sequence[Mapping[str, Any]],
  record: Mapping[str, Any],
  *,
  beside: Beside = NONE_BESIDE,
) -> dict[str, Any]:
  """Writes the captions and then manifest.json, which marks the folder as done; returns it.

  Args:
    folder: the folder, with all pictures written.
    entries: records from `write`, in manifest order.
    record: how the pictures were made, as in `manifest.write_folder`.
    beside: captions; those of the pictures are written.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   folder = Path(place) / "out"
  ...   _ = claim(folder, ["a"])
  ...   made = write(folder, Path(place) / "r", "a", images.Picture(np.zeros((4, 6, 3), np.uint8)))
  ...   finish(folder, [made], {"method": "udp"})["complete"]
  True
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
  """Returns whether a finished folder is up to date: pictures, metadata and captions.

  Args:
    folder: a folder whose manifest has the same settings.
    names: names of the wanted pictures.
    done: what is made, from `progress_of`.
    beside: captions beside the sources.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   is_finished(Path(place), ["a"], Progress({}, (), (), {}), NONE_BESIDE)
  False
  """
  return done.is_done(names) and not manifest.captions_differ(folder, names, beside)


def _record(records: Path, name: str) -> Path:
  return records / f"{name}.json"


def _is_record(entry: Mapping[str, Any], name: str) -> bool:
  """Returns whether an entry is a valid record by `write`; if not, the picture is made again."""
  levels, psnr = entry.get("max_abs_255", 0), entry.get("psnr")
  sizes = [entry.get(field, 1) for field in ("width", "height")]
  return (
    entry.get("file") == f"{name}.png"
    and isinstance(entry.get("sha256"), str)
    and all(isinstance(value, int) and value >= 0 for value in (levels, *sizes))
    and (psnr is None or (isinstance(psnr, int | float) and math.isfinite(psnr)))
  )


def _difference(first: np.ndarray, second: np.ndarray) -> tuple[int, float | None]:
  """Returns the largest difference in levels and the PSNR in dB, by rows to save memory."""
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
