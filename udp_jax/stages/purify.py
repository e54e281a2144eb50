"""Purifies a folder of pictures of any sizes; a killed run resumes at the next file.

  workdir/settings.json       the settings of the run; a run with other settings is refused
  workdir/records/            a record of every finished file
  output/<name>.png, manifest.json   the purified pictures; the manifest comes last

A run on a finished output makes only the missing files: those of added or changed pictures, and
deleted ones. The output of a deleted picture stays.

Pictures of one size go through the method in batches. A picture's draws come from its name, so the
result depends neither on the batches nor on where a run was interrupted.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from udp_jax import purifiers
from udp_jax.data import images, manifest, originals, picture_folder, places
from udp_jax.data.picture_files import PictureFile, PictureFolder
from udp_jax.errors import ConfigError, OutputError
from udp_jax.models.base import Params
from udp_jax.purifiers import Purifier
from udp_jax.runtime import files, loop, processes
from udp_jax.runtime import workdir as workdir_lib
from udp_jax.stages.records import Run

_log = logging.getLogger(__name__)
# Settings that older records lack, with what they meant.
_LACKING = {"purifier_model": ""}


class Prepared(NamedTuple):
  """A purifier that is ready to run.

  Attributes:
    purifier: the method, from `purifiers.build`.
    params: its parameters, from `purifier.init`.
    settings: "method", "options", "seed" and all else that decides the result, for the manifest; a
      run with other settings does not continue an unfinished one.
  """

  purifier: Purifier
  params: Params
  settings: dict[str, Any]


def purify(
  method: Prepared, pictures: PictureFolder, output: Path, run: Run, *, strict: bool = False
) -> dict[str, Any]:
  """Purifies a folder of pictures, and resumes an unfinished run.

  Args:
    method: the purifier, its parameters and settings.
    pictures: the pictures to purify.
    output: folder for the purified pictures: PNG under the old names, with transparency, colour
      profile and EXIF.
    run: its folder keeps the records of finished files; a device purifies `sample_batch_size`
      pictures of one size at a time and checks its loss every `steps_per_call` steps; `overwrite`
      also replaces a finished folder of other settings, and an unfinished one.
    strict: raise an error for a picture whose size the method cannot take, instead of skipping it.

  Returns:
    The manifest; "skipped" in its "origin" also lists the pictures that the method cannot take.

  Raises:
    ConfigError: the working folder has other settings, no picture fits the method, or there are
      several processes.
    OutputError: the output folder cannot be used.
    DivergedError: a loss is not finite.
  """
  if processes.count() > 1:
    raise ConfigError("purifying a folder is the work of one process")
  purifier, params, settings = method
  workdir, overwrite = run.folder, run.overwrite
  usable, refused = _fitting(purifier, params, pictures.files)
  if refused and (strict or not usable):
    raise ConfigError(f"{refused[0][0]}: {refused[0][1]}")
  names = [file.name for file in usable]
  records = workdir / "records"
  place = str(pictures.folder.resolve())
  sources = {file.name: picture_folder.source_of(file, folder=place) for file in usable}
  extend = not overwrite and _is_finished(output, settings)
  copies = originals.copies(output, workdir, sources)
  if overwrite:
    manifest.check_output(output, overwrite=True, copies=copies)
  # Without --overwrite this accepts or refuses the folder; with it, old records may be removed.
  _check_settings(workdir, settings, overwrite)
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
  size = run.sample_batch_size * run.mesh.size
  try:
    with tqdm(
      total=len(names), initial=len(entries), desc="purified", unit="file", disable=not run.progress
    ) as bar:
      waiting = _batches([f for f in usable if f.name not in entries], size)
      for number, batch in enumerate(waiting):
        started, before = time.monotonic(), len(entries)
        read = [images.read_image(file.path) for file in batch]
        purified = purifiers.purify(
          purifier,
          params,
          run.key,
          np.stack([picture.pixels for picture in read]),
          [zlib.crc32(file.name.encode()) for file in batch],
          purifiers.Batching(run.sample_batch_size, run.mesh, run.steps_per_call),
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
        if number == 1:  # The first one compiled.
          per_file = (time.monotonic() - started) / len(batch)
          loop.say_left("purify", per_file * (len(names) - len(entries)))
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
  record = {**settings, "origin": origin}
  listed = [entries[name] for name in names] + [done.others[name] for name in sorted(done.others)]
  return picture_folder.finish(output, listed, record, beside=pictures.beside)


def _is_finished(output: Path, settings: dict[str, Any]) -> bool:
  """Whether the output is finished with the same settings; OutputError if with others."""
  made = manifest.read_manifest(output)
  if made is None or (output / manifest.INCOMPLETE).exists():
    return False
  # A manifest keeps only the name of a place, not its path.
  was = places.published({name: made.get(name, _LACKING.get(name)) for name in settings})
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
  """Purified pixels, grey where the original picture is grey."""
  return images.as_grey(pixels) if images.is_grey(picture.pixels) else pixels


def _show(bar: tqdm, before: int, done: float) -> None:
  bar.n = round(before + done, 2)
  bar.refresh()


def _fitting(
  purifier: Purifier, params: Params, found: Sequence[PictureFile]
) -> tuple[list[PictureFile], list[list[str]]]:
  """Returns the pictures whose sizes the method takes, and [file, reason] for each other one."""
  reasons: dict[tuple[int, int], str] = {}
  key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
  for size in sorted({(file.height, file.width) for file in found}):
    picture = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    try:
      jax.eval_shape(purifier.apply, params, key, picture)
      reasons[size] = ""
    except (ConfigError, ValueError) as error:  # Methods and filters raise these for bad sizes.
      reasons[size] = str(error)
  usable = [file for file in found if not reasons[file.height, file.width]]
  refused = [
    [file.relative, reasons[file.height, file.width]]
    for file in found
    if reasons[file.height, file.width]
  ]
  return usable, refused


def _batches(found: Sequence[PictureFile], size: int) -> list[list[PictureFile]]:
  """Returns batches of pictures of one size, ordered by the first picture of each size."""
  by_size: dict[tuple[int, int], list[PictureFile]] = {}
  for file in found:
    by_size.setdefault((file.height, file.width), []).append(file)
  return [
    alike[start : start + size]
    for alike in by_size.values()
    for start in range(0, len(alike), size)
  ]


def _check_settings(workdir: Path, settings: dict[str, Any], replace: bool) -> None:
  """Writes workdir/settings.json; refuses to continue an unfinished run of other settings."""

  def text(given: dict[str, Any]) -> str:
    named = {name: places.canonical(given.get(name) or "") for name in ("model", "purifier_model")}
    return files.to_json(given | named)

  workdir_lib.claim(
    workdir / workdir_lib.SETTINGS,
    settings,
    lambda old: ["settings"] if text(old) != text(settings) else [],
    clear=_drop_records if replace else None,
    says="{workdir} holds a run with other settings: choose another --workdir, delete that folder, "
    "or allow overwriting",
  )


def _drop_records(workdir: Path) -> None:
  """Removes the records of finished files of a run with other settings."""
  if not workdir_lib.is_ours(workdir):
    raise OutputError(f"{workdir} is no work folder of ours: choose another --workdir")
  for record in sorted((workdir / "records").rglob("*.json")):
    if originals.is_record(files.read_json(record)):
      with files.output_errors(record):
        record.unlink()
