"""A stage's output folder: lossless 8-bit files and, written last, `manifest.json`.

```
folder/
  astronaut/0001.png   one PNG per image, under its own name; subfolders stay (Hugging Face's
  ...                  "imagefolder" reads them as labels and ignores the manifest)
  manifest.json        how the files were made and measured; its presence means "done"
```
While a folder is being written, it holds the hidden file `.incomplete` instead of a manifest. That
file lists the planned files, so that a later run recognises and replaces what a killed run left.
Each of several processes writes its own pictures and `manifest.part-<process>.json`; process 0
merges the parts.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from udp_jax.data import captions, image_set, images, marks, naming, output, places
from udp_jax.data import folder as folders
from udp_jax.data.captions import NONE_BESIDE, Beside
from udp_jax.data.image_set import ImageSet, Metadata
from udp_jax.data.marks import FORMAT, INCOMPLETE, MANIFEST, is_complete, read_manifest
from udp_jax.data.output import check_output
from udp_jax.errors import BadDataError, OutputError
from udp_jax.runtime import files, processes

__all__ = [
  "Details",
  "INCOMPLETE",
  "MANIFEST",
  "check_limit",
  "check_output",
  "code_sha256",
  "count_over",
  "describe",
  "file_sha256",
  "is_complete",
  "listed",
  "max_abs_255",
  "read_folder",
  "read_manifest",
  "write_folder",
]

_VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy", "pillow", "udp_jax")
_OWN_KEYS = frozenset(
  {
    "format",
    "complete",
    "versions",
    "code_sha256",
    "source_sha256",
    "created",
    "worst",
    "images",
    "captions",
  }
)


class Details(NamedTuple):
  """Data of N images besides their pixels and names.

  Attributes:
    rows: int (len(rows),), sorted indices of the images that this process writes; None for all.
    limit: uint8 (N, H, W, 1), the largest change of each pixel in 8-bit levels, where that is less
      than the budget; every file must keep it.
    alphas: N entries, uint8 (H, W) or None, saved as the files' transparency.
    metadata: N entries; their profiles, EXIF blocks and chunks are saved in the files, their notes
      in the manifest. Grey images are saved with one channel.
    beside: captions beside the sources; those of the written images are written too.
    sources: source of each file, by file name, from `picture_folder.source_of`.
  """

  rows: np.ndarray | None = None
  limit: np.ndarray | None = None
  alphas: Sequence[np.ndarray | None] | None = None
  metadata: Sequence[Metadata] | None = None
  beside: Beside = NONE_BESIDE
  sources: Mapping[str, Mapping[str, Any]] | None = None


def write_folder(
  folder: str | os.PathLike,
  images_uint8: np.ndarray,
  names: Sequence[str],
  *,
  clean: np.ndarray | None = None,
  details: Details = Details(),
  record: Mapping[str, Any] | None = None,
  overwrite: bool = False,
  copies: Collection[str] | None = None,
) -> dict[str, Any] | None:
  """Writes `<name>.png` for every image, re-reads and measures it, then writes the manifest.

  The PNG files depend only on the arguments, so two equal calls give the same bytes; the time stamp
  and versions are in the manifest. On any error the files written so far are removed. With several
  processes, all call this function, each with its own images, and the folder must be on a shared
  disk.

  Args:
    folder: the output folder, created with its parents.
    images_uint8: uint8 (N, H, W, 3), or (len(rows), H, W, 3) with `details.rows`.
    names: N unique relative posix names without extension.
    clean: uint8 (N, H, W, 3) references to measure against, or None to measure nothing.
    details: further data to save with the images, and the limits they must keep.
    record: how the images were made, merged into the manifest: "method", "config", "seed",
      "origin", ... If it has "radius_255", every file must keep that budget.
    overwrite: whether to replace a finished folder of ours. Other files are never removed.
    copies: SHA-256 sums of pictures that exist elsewhere too, from `originals.copies`; only such
      pictures are replaced.

  Returns:
    The manifest as written, or None in processes other than 0. Its "images" entries hold "file",
    "sha256" (of the file) and, with `clean`, "max_abs_255" (levels), "psnr" (dB; null if
    identical) and "ssim" (null below 11 pixels), measured on the pixels re-read from the file.

  Raises:
    OutputError: the folder is in use, read-only, full, or not shared by the processes.
    RuntimeError: a file breaks the budget or differs from what was written, which is a bug.

  >>> import tempfile
  >>> levels = np.zeros((2, 8, 8, 3), np.uint8)
  >>> with tempfile.TemporaryDirectory() as place:
  ...   made = write_folder(f"{place}/out", levels + 3, ["a", "b"], clean=levels)
  >>> made["worst"]
  {'file': 'a.png', 'max_abs_255': 3}
  """
  folder = Path(folder)
  alphas, metadata, limit = details.alphas, details.metadata, details.limit
  sources, beside = details.sources, details.beside
  rows = np.arange(len(names)) if details.rows is None else details.rows
  record = dict(record or {})
  images_uint8 = np.asarray(images_uint8)  # threads index it, so it must not be on a device
  clean = None if clean is None else np.asarray(clean)
  _check_arguments(images_uint8, names, rows, clean, details, record)
  relatives = [f"{name}.png" for name in names]
  texts = list(beside.render(names))
  parts = [f"manifest.part-{i}.json" for i in range(processes.count())]
  parts = parts if len(parts) > 1 else []
  announced = [*relatives, *texts, *parts]
  created = processes.from_main(
    lambda: [str(f) for f in output.claim(folder, announced, overwrite, copies=copies)],
    f"claim {folder.name}",
  )

  def write(position: int) -> dict[str, Any]:
    index, pixels = rows[position], images_uint8[position]
    extras = metadata[index] if metadata is not None else Metadata("")
    path = folder / relatives[index]
    alpha = alphas[index] if alphas is not None else None
    content = images.encode_png(
      pixels,
      alpha=alpha,
      icc_profile=extras.icc_profile,
      exif=extras.exif,
      chunks=extras.chunks,
      grey=extras.grey,
    )
    source = (sources or {}).get(relatives[index])
    digest = output.put(folder, relatives[index], content, source)
    saved = images.read_image(path)
    if not np.array_equal(saved.pixels, pixels) or (
      alpha is not None and (saved.alpha is None or not np.array_equal(saved.alpha, alpha))
    ):
      raise RuntimeError(f"{path}: the file does not hold the pixels that were written")
    entry: dict[str, Any] = {"file": relatives[index], "sha256": digest}
    if source:
      entry["source"] = dict(source)
    if extras.notes:
      entry["notes"] = list(extras.notes)
    if clean is not None:
      entry["max_abs_255"] = max_abs_255(saved.pixels, clean[index])
      if limit is not None:
        check_limit(path, saved.pixels, clean[index], limit[index])
    return entry

  def write_own() -> list[dict[str, Any]]:
    entries = _run(write, len(rows))
    if clean is not None and entries:
      _add_similarity(entries, images_uint8, clean[rows])
    if parts:
      part = {"rows": rows, "images": entries}
      content = (files.to_json(part) + "\n").encode()
      output.put(folder, parts[processes.index()], content)
    return entries

  def merge() -> dict[str, Any]:
    entries = _merge(folder, relatives, parts) if parts else own
    manifest = describe(record, folder)
    manifest["source_sha256"] = None if clean is None else image_set.pixels_sha256(clean)
    manifest |= write_captions(folder, relatives, beside)
    manifest["images"] = [listed(entry, record) for entry in entries]
    if clean is not None:
      worst = max(entries, key=lambda entry: entry["max_abs_255"])
      manifest["worst"] = {"file": worst["file"], "max_abs_255": worst["max_abs_255"]}
      radius = record.get("radius_255")
      if radius is not None and worst["max_abs_255"] > radius:
        raise RuntimeError(
          f"{folder / worst['file']}: {worst['max_abs_255']} levels from its clean image, over the "
          f"budget of {radius}"
        )
    with files.output_errors(folder):
      for part in parts:
        (folder / part).unlink()
    files.write_json(folder / MANIFEST, manifest)
    output.finish(folder)
    return manifest

  try:
    own = processes.all_or_none(write_own, f"write {folder.name}")
    merged: list[dict[str, Any]] = []
    processes.from_main(lambda: merged.append(merge()), f"merge {folder.name}")
  except BaseException:
    if processes.is_main():
      mine = [MANIFEST, *relatives, *texts, *parts, INCOMPLETE]
      output.remove(folder, mine, [Path(f) for f in created])
    raise
  return merged[0] if merged else None


def _merge(folder: Path, relatives: Sequence[str], parts: Sequence[str]) -> list[dict[str, Any]]:
  """Merges the entries of all processes in order; this process re-reads every file."""
  entries: dict[int, dict[str, Any]] = {}
  for part in parts:
    path = folder / part
    if not path.is_file():
      raise OutputError(
        f"{path}: another process wrote it, but it is not here; all processes must share the disk"
      )
    found = files.read_json(path)
    entries |= dict(zip(found["rows"], found["images"], strict=True))
  if sorted(entries) != list(range(len(relatives))):
    raise RuntimeError(f"{folder}: {len(entries)} of {len(relatives)} images were written")

  def check(index: int) -> dict[str, Any]:
    path = folder / relatives[index]
    if not path.is_file() or file_sha256(path) != entries[index]["sha256"]:
      raise OutputError(f"{path} is not the file that another process wrote")
    return entries[index]

  return _run(check, len(relatives))


def read_folder(folder: str | os.PathLike) -> tuple[ImageSet, dict[str, Any] | None]:
  """Reads the images of a folder, and its manifest if we wrote it.

  A folder from other tools is read like `folder:PATH` (all images of one size), with manifest None.
  With a manifest, exactly the listed files are read, in its order.

  Raises:
    MissingDataError: the folder does not exist or is empty.
    BadDataError: the folder is unfinished, or a file is missing or damaged.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   _ = write_folder(f"{place}/out", np.zeros((1, 8, 8, 3), np.uint8), ["a"])
  ...   pictures, made = read_folder(f"{place}/out")
  >>> pictures.names, made["complete"]
  (('a',), True)
  """
  folder = Path(folder)
  manifest = read_manifest(folder)
  if manifest is None:
    loaded = folders.load_folder(
      folder, image_size=None, limit=None, seed=0, strict=False, classes=None
    )
    return loaded, None
  pictures = []
  for entry in manifest["images"]:
    if not (folder / entry["file"]).is_file():
      raise BadDataError(f"{folder}: {entry['file']} of its {MANIFEST} is missing; write it again")
    pictures.append(images.read_image(folder / entry["file"]))
  if len({picture.pixels.shape for picture in pictures}) != 1:
    raise BadDataError(
      f"{folder}: its images are of different sizes, and one set has one; make it with --resize"
    )
  relatives = [entry["file"] for entry in manifest["images"]]
  origin = manifest.get("origin") or {}
  class_names = sorted({relative.split("/")[0] for relative in relatives})
  labelled = all("/" in relative for relative in relatives) and len(class_names) > 1
  read = image_set.finish(
    ImageSet(
      np.stack([picture.pixels for picture in pictures]),
      [relative.removesuffix(".png") for relative in relatives],
      labels=np.array([class_names.index(r.split("/")[0]) for r in relatives], np.int32)
      if labelled
      else None,
      alphas=[picture.alpha for picture in pictures],
      metadata=[Metadata(relative, *picture[2:]) for relative, picture in zip(relatives, pictures)],
    ),
    f"folder {folder}",
    classes=class_names if labelled else None,
    made_from=origin.get("source"),
  )
  return read, manifest


def write_captions(folder: Path, relatives: Sequence[str], beside: Beside) -> dict[str, Any]:
  """Writes the captions of the files `relatives`; returns {"captions": entries}, or {} if none.

  Captions of pictures that `beside` does not know (their sources are gone) stay. An entry is
  {"file", "sha256"}, as for a picture.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   write_captions(Path(place), ["a.png"], NONE_BESIDE)
  {}
  """
  names = [relative.removesuffix(".png") for relative in relatives]
  written = beside.render(names)
  for place, content in written.items():
    if not _holds(folder / place, content):
      output.put(folder, place, content)
  for place in _outdated_captions(folder, names, beside):
    with files.output_errors(folder / place):
      (folder / place).unlink()
  others = [name for name in names if name not in beside.names.values()]
  places = {*written, *_caption_files(folder, others)}
  entries = [{"file": place, "sha256": file_sha256(folder / place)} for place in sorted(places)]
  return {"captions": entries} if entries else {}


def captions_differ(folder: Path, names: Sequence[str], beside: Beside) -> bool:
  """Returns whether a folder's captions differ from the current captions of its pictures `names`.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   captions_differ(Path(place), ["a"], NONE_BESIDE)
  False
  """
  wanted = beside.render(names).items()
  return any(not _holds(folder / place, content) for place, content in wanted) or bool(
    _outdated_captions(folder, names, beside)
  )


def _outdated_captions(folder: Path, names: Sequence[str], beside: Beside) -> list[str]:
  """Returns captions whose pictures' sources no longer have captions."""
  known = frozenset(beside.names.values())
  mine = [name for name in names if name in known]
  found = _caption_files(folder, mine)
  if mine and len(mine) == len(names):
    found += [table for table in captions.TABLES if (folder / table).is_file()]
  return sorted(set(found) - set(beside.render(names)))


def _caption_files(folder: Path, names: Sequence[str]) -> list[str]:
  places = [f"{name}{suffix}" for name in names for suffix in captions.SUFFIXES]
  return [place for place in places if (folder / place).is_file()]


def _holds(path: Path, content: bytes) -> bool:
  return path.is_file() and path.read_bytes() == content


def describe(record: Mapping[str, Any], folder: Path) -> dict[str, Any]:
  """Returns a manifest's fields except its images: `record`, the time and the code versions.

  Outputs may be published, so their manifests hold names of files and folders, not their paths. A
  clean reference stays in its work folder and keeps paths.

  >>> describe({"method": "udp"}, Path("out"))["complete"]
  True
  """
  said = record if record.get("method") == marks.CLEAN else places.published(record, folder)
  return {
    "format": FORMAT,
    "complete": True,
    **said,
    "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "versions": {package: _version(package) for package in _VERSIONS},
    "code_sha256": code_sha256(),
  }


def listed(entry: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a picture's record for the manifest, without paths unless in a clean reference.

  >>> entry = {"file": "a.png", "source": {"file": "a.jpg", "folder": "/home/me"}}
  >>> listed(entry, {"method": "udp"})
  {'file': 'a.png', 'source': {'file': 'a.jpg'}}
  """
  entry = dict(entry)
  if "source" in entry and record.get("method") != marks.CLEAN:
    entry["source"] = {k: v for k, v in entry["source"].items() if k != "folder"}
  return entry


def max_abs_255(first: np.ndarray, second: np.ndarray) -> int:
  """Returns the largest absolute difference of two uint8 images, in 8-bit levels.

  >>> max_abs_255(np.array([3], np.uint8), np.array([10], np.uint8))
  7
  """
  return int(np.abs(first.astype(np.int16) - second.astype(np.int16)).max(initial=0))


def check_limit(path: Path, saved: np.ndarray, clean: np.ndarray, limit: np.ndarray) -> None:
  """Raises RuntimeError (a bug) if a pixel of a saved file changed by more than its limit.

  Args:
    path: path of the file, for the message.
    saved: uint8 (H, W, 3), pixels read back from the file.
    clean: uint8 (H, W, 3), clean pixels.
    limit: uint8 (H, W, 1), largest allowed change in 8-bit levels.

  >>> clean, limit = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 1), 2, np.uint8)
  >>> check_limit(Path("a.png"), clean + 3, clean, limit)
  Traceback (most recent call last):
    ...
  RuntimeError: a.png: 3 values are further from the clean ones than their limit
  """
  over = count_over(saved, clean, limit)
  if over:
    raise RuntimeError(f"{path}: {over} values are further from the clean ones than their limit")


def count_over(saved: np.ndarray, clean: np.ndarray, limit: np.ndarray) -> int:
  """Counts the values of uint8 (H, W, 3) that differ by more than their pixel's limit (H, W, 1).

  >>> clean, limit = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 1), 2, np.uint8)
  >>> count_over(clean + 3, clean, limit)
  3
  """
  count = 0
  for start in range(0, len(saved), 256):  # In blocks of rows, to save memory.
    part = slice(start, start + 256)
    count += int((np.abs(saved[part].astype(np.int16) - clean[part]) > limit[part]).sum())
  return count


def code_sha256() -> str:
  """Returns the SHA-256 over the package's Python files, which identifies the code that ran.

  >>> len(code_sha256())
  64
  """
  root = Path(__file__).resolve().parents[1]
  digest = hashlib.sha256()
  for path in sorted(root.rglob("*.py")):
    digest.update(path.relative_to(root).as_posix().encode() + b"\0")
    digest.update(path.read_bytes() + b"\0")
  return digest.hexdigest()


def _check_arguments(
  images_uint8: np.ndarray,
  names: Sequence[str],
  rows: np.ndarray,
  clean: np.ndarray | None,
  details: Details,
  record: Mapping[str, Any],
) -> None:
  """Refuses invalid arguments before anything is written."""
  if images_uint8.dtype != np.uint8 or images_uint8.ndim != 4 or images_uint8.shape[-1] != 3:
    raise ValueError(f"images must be uint8 (N, H, W, 3), got {images_uint8.dtype}")
  count, shape = len(names), (len(names), *images_uint8.shape[1:])
  if not count:
    raise ValueError("there are no images to write")
  if len(rows) != len(images_uint8):
    raise ValueError(f"{len(rows)} names for {len(images_uint8)} images")
  if clean is not None and (clean.dtype != np.uint8 or clean.shape != shape):
    raise ValueError(f"clean must be uint8 {shape}, got {clean.dtype} {clean.shape}")
  for what in ("alphas", "metadata"):
    values = getattr(details, what)
    if values is not None and len(values) != count:
      raise ValueError(f"{len(values)} {what} for {count} images")
  unsafe = [name for name in names if not naming.is_safe_name(name)]
  if unsafe:
    raise ValueError(f"name {unsafe[0]!r} is empty, hidden, absolute or leaves the folder")
  if len(set(names)) != count:
    raise ValueError("names must be unique")
  directories = {str(parent) for name in names for parent in PurePosixPath(name).parents}
  if clash := directories.intersection(f"{name}.png" for name in names):
    raise OutputError(
      f"{sorted(clash)[0]} would be both a file and a folder; rename one of the source's images"
    )
  if reserved := _OWN_KEYS.intersection(record):
    raise ValueError(f"the record may not set {', '.join(sorted(reserved))}")
  files.to_json(record)


def _run(function: Callable[[int], dict[str, Any]], count: int) -> list[dict[str, Any]]:
  """Runs `function(index)` in threads and returns results in order; the first error stops it."""
  with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    futures = [pool.submit(function, index) for index in range(count)]
    try:
      return [future.result() for future in futures]
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise


def _add_similarity(
  entries: list[dict[str, Any]], images_uint8: np.ndarray, clean: np.ndarray, chunk: int = 64
) -> None:
  """Adds "psnr" and "ssim" to the entries; the arrays equal the pixels re-read from the files."""
  # Imported here so that jax starts only if something is measured.
  import jax
  import jax.numpy as jnp

  from udp_jax.ops import similarity

  # Compile each function as a whole: its single operations take seconds to compile per process.
  psnr_of, ssim_of = jax.jit(similarity.psnr), jax.jit(similarity.ssim)
  small = min(images_uint8.shape[1:3]) < 11  # side of the SSIM window
  for start in range(0, len(entries), chunk):
    # Pad the last chunk with its last image, so that only one shape is compiled.
    rows = np.minimum(np.arange(start, start + chunk), len(entries) - 1)
    pair = [jnp.asarray(array[rows], jnp.float32) / 255 for array in (images_uint8, clean)]
    psnr = np.asarray(psnr_of(*pair))
    ssim = None if small else np.asarray(ssim_of(*pair))
    for offset, entry in enumerate(entries[start : start + chunk]):
      entry["psnr"] = round(float(psnr[offset]), 4) if np.isfinite(psnr[offset]) else None
      entry["ssim"] = None if ssim is None else round(float(ssim[offset]), 6)


def file_sha256(path: Path) -> str:
  """Returns the SHA-256 of a file's bytes.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   (Path(place) / "a").touch()
  ...   file_sha256(Path(place) / "a")[:8]
  'e3b0c442'
  """
  return hashlib.sha256(path.read_bytes()).hexdigest()


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def is_done(folder: Path, overwrite: bool, copies: Collection[str] | None = None) -> bool:
  """Returns whether process 0 sees a finished folder; if not, checks that it can be written.

  Raises:
    OutputError: the folder cannot be written.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as place:
  ...   is_done(Path(place) / "out", overwrite=False)
  False
  """

  def look() -> bool:
    if is_complete(folder) and not overwrite:
      return True
    check_output(folder, overwrite=overwrite, copies=copies)
    return False

  return processes.from_main(look, f"look at {folder.name}")
