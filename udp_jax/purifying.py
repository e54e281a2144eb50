"""Purifying a folder of pictures of any sizes: folder in, folder out, resumable file by file.

  workdir/settings.json       what is run; other settings are refused there
  workdir/records/            a record of every finished file
  output/<name>.png, manifest.json   the purified pictures; the manifest comes last

A run on a finished output makes what is missing: pictures that were added or changed, files that
were deleted. What was made of pictures that are gone stays.

Pictures of one size go through the method in batches; a picture's draws come from its name, so how
pictures are put together, and where a run was interrupted, change nothing.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from udp_jax import processes, purifiers
from udp_jax.data import (
  files,
  images,
  manifest,
  originals,
  picture_folder,
  places,
  work_folder,
)
from udp_jax.data.picture_folder import PictureFile, PictureFolder
from udp_jax.errors import ConfigError, OutputError
from udp_jax.models.base import Params
from udp_jax.purifiers import Purifier
from udp_jax.randomness import stream

_log = logging.getLogger(__name__)


def purify_folder(
  purifier: Purifier,
  params: Params,
  pictures: PictureFolder,
  output: Path,
  workdir: Path,
  *,
  settings: dict[str, Any],
  seed: int = 0,
  per_device_batch_size: int = 8,
  mesh: Mesh | None = None,
  steps_per_call: int = 50,
  strict: bool = False,
  overwrite: bool = False,
  progress: bool = True,
) -> dict[str, Any]:
  """Purifies a folder, now or in the rest of an earlier run.

  Args:
    purifier: from `purifiers.build`.
    params: of `purifier.init`.
    pictures: what to purify.
    output: folder for the purified pictures: PNG under the old names, with transparency, colour
      profile and EXIF.
    workdir: for records of finished files.
    settings: "method", "options" and what else decides the result, for the manifest; an unfinished
      run with other settings is not continued.
    seed: of the draws.
    per_device_batch_size: pictures of one size that a device works on at a time.
    mesh: devices to split a batch over.
    steps_per_call: see `purifiers.run`.
    strict: a picture whose size the method cannot take is an error, not skipped.
    overwrite: replace a finished folder of other settings, and an unfinished one.
    progress: show a bar.

  Returns:
    The manifest, "skipped" in its "origin" extended by pictures that the method cannot take.

  Raises:
    ConfigError: other settings stand in `workdir`, no picture fits the method, or several
      processes.
    OutputError: the output folder cannot be used.
    DivergedError: a loss is not finite.
  """
  if processes.count() > 1:
    raise ConfigError("purifying a folder is the work of one process")
  usable, refused = _fitting(purifier, params, pictures.files)
  if refused and (strict or not usable):
    raise ConfigError(f"{refused[0][0]}: {refused[0][1]}")
  names = [file.name for file in usable]
  records = workdir / "records"
  place = str(pictures.folder.resolve())
  sources = {file.name: picture_folder.source_of(file, folder=place) for file in usable}
  extend = not overwrite and _is_finished(output, settings | {"seed": seed})
  copies = originals.copies(output, workdir, sources)
  if overwrite:
    manifest.check_output(output, overwrite=True, copies=copies)
  # Without --overwrite this looks at what is there, or refuses; with it, old records may go first.
  _check_settings(workdir, settings | {"seed": seed}, overwrite)
  done = picture_folder.progress_of(output, records, sources, finished=extend)
  _say_what_is_kept(names, done)
  if extend and picture_folder.is_finished(output, names, done, pictures.beside):
    _log.info("purify: nothing to do, %d pictures are finished", len(names))
    return manifest.read_manifest(output) or {}
  entries = done.entries
  created = picture_folder.claim(
    output,
    [*names, *done.others],
    keep=[*entries, *done.others],
    replace=done.changed,
    overwrite=overwrite,
    extend=extend,
    copies=copies,
    beside=pictures.beside,
  )
  size = per_device_batch_size * (1 if mesh is None else mesh.size)
  key = stream(jax.random.key(seed), "purifier")
  try:
    with tqdm(
      total=len(names), initial=len(entries), desc="purified", unit="file", disable=not progress
    ) as bar:
      for batch in _batches([f for f in usable if f.name not in entries], size):
        before = len(entries)
        read = [images.read_image(file.path) for file in batch]
        purified = purifiers.purify(
          purifier,
          params,
          key,
          np.stack([picture.pixels for picture in read]),
          [zlib.crc32(file.name.encode()) for file in batch],
          per_device_batch_size=per_device_batch_size,
          mesh=mesh,
          steps_per_call=steps_per_call,
          on_progress=partial(_show, bar, before),
        )
        for file, picture, pixels in zip(batch, read, purified):
          made = picture._replace(pixels=_as_before(picture, pixels))
          entries[file.name] = picture_folder.write(
            output,
            records,
            file.name,
            made,
            clean=picture.pixels,
            source=sources[file.name],
            notes=file.notes,
          )
    for file in usable:
      if file.name in done.stale:
        picture = images.read_image(file.path)
        saved = images.read_image(output / f"{file.name}.png")
        entries[file.name] = picture_folder.write(
          output,
          records,
          file.name,
          picture._replace(pixels=saved.pixels),
          clean=picture.pixels,
          source=sources[file.name],
          notes=file.notes,
        )
  except BaseException:
    if created and not entries:
      picture_folder.withdraw(output, created)
    raise
  origin = pictures.origin | {"skipped": [*pictures.origin["skipped"], *refused]}
  record = {**settings, "seed": seed, "origin": origin}
  listed = [entries[name] for name in names] + [done.others[name] for name in sorted(done.others)]
  return picture_folder.finish(output, listed, record, beside=pictures.beside)


def _is_finished(output: Path, settings: dict[str, Any]) -> bool:
  """Whether the output is a finished one of the same settings; OutputError if of others."""
  made = manifest.read_manifest(output)
  if made is None or (output / manifest.INCOMPLETE).exists():
    return False
  # A manifest has of a place its name only.
  was = places.published({name: made.get(name) for name in settings})
  now = places.published(settings)
  if files.to_json(was) != files.to_json(now):
    raise _finished(output)
  return True


def _finished(output: Path) -> OutputError:
  return OutputError(
    f"cannot write {output}: it is a finished output already; choose another folder or allow "
    "overwriting it (--overwrite)"
  )


def _say_what_is_kept(names: Sequence[str], done: picture_folder.Progress) -> None:
  if done.entries and len(done.entries) < len(names):
    _log.info("purify: %d of %d pictures are finished", len(done.entries), len(names))
  if done.stale:
    _log.info("purify: %d files get the new metadata of their source", len(done.stale))
  if done.others:
    _log.warning(
      "purify: %d files stay whose pictures are no longer in the input: %s",
      *(len(done.others), ", ".join(sorted(done.others))),
    )


def _as_before(picture: images.Picture, pixels: np.ndarray) -> np.ndarray:
  """Purified pixels, grey where the picture was."""
  return images.as_grey(pixels) if images.is_grey(picture.pixels) else pixels


def _show(bar: tqdm, before: int, done: float) -> None:
  bar.n = round(before + done, 2)
  bar.refresh()


def _fitting(
  purifier: Purifier, params: Params, found: Sequence[PictureFile]
) -> tuple[list[PictureFile], list[list[str]]]:
  """The pictures whose sizes the method takes, and [file, reason] of the others."""
  reasons: dict[tuple[int, int], str] = {}
  key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
  for size in sorted({(file.height, file.width) for file in found}):
    picture = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    try:
      jax.eval_shape(purifier.apply, params, key, picture)
      reasons[size] = ""
    except (ConfigError, ValueError) as error:  # What methods and filters raise for such sizes.
      reasons[size] = str(error)
  usable = [file for file in found if not reasons[file.height, file.width]]
  refused = [
    [file.relative, reasons[file.height, file.width]]
    for file in found
    if reasons[file.height, file.width]
  ]
  return usable, refused


def _batches(found: Sequence[PictureFile], size: int) -> list[list[PictureFile]]:
  """Batches of one size each, in the order in which their first pictures stand."""
  by_size: dict[tuple[int, int], list[PictureFile]] = {}
  for file in found:
    by_size.setdefault((file.height, file.width), []).append(file)
  return [
    alike[start : start + size]
    for alike in by_size.values()
    for start in range(0, len(alike), size)
  ]


def _check_settings(workdir: Path, settings: dict[str, Any], replace: bool) -> None:
  """Writes workdir/settings.json, or refuses to go on with an unfinished run of another kind."""
  path = workdir / "settings.json"
  text = files.to_json(settings | {"model": places.canonical(settings.get("model") or "")})
  was = files.read_json(path) if path.exists() else settings
  if files.to_json(was | {"model": places.canonical(was.get("model") or "")}) != text:
    if not replace:
      raise ConfigError(
        f"{workdir} holds a run with other settings: choose another --workdir, delete that folder, "
        "or allow overwriting"
      )
    if not work_folder.is_ours(workdir):
      raise OutputError(f"{workdir} is no work folder of ours: choose another --workdir")
    for record in sorted((workdir / "records").rglob("*.json")):
      if originals.is_record(files.read_json(record)):
        with files.output_errors(record):
          record.unlink()
  files.write_json(path, settings)
  work_folder.mark(workdir)
