"""Protects pictures of any size by overlapping tiles of the model's size.

  workdir/clean/<name>.png            the 8-bit reference at full resolution
  workdir/stages/protect_<row>/       checkpoints and metrics.jsonl (one set for each group if there
                                      are several); a record of every finished file
  output/<name>.png, manifest.json    the protected pictures; the manifest comes last

The tiles of a *group* of pictures are one data set for `stages.protect.run_rounds`. Their deltas
stay in float32 and are feathered into one delta for each picture, which is rounded to 8 bits once,
within the budget (`ops.image.quantise_within`). A killed run resumes in the middle of a group from
its checkpoint, or else at the next file.

Groups. A method that trains a surrogate learns from all pictures, so all pictures are one group and
their tiles are in memory together. Noise, and a method that attacks a fixed model, work on a few
pictures at a time. A tile's draws depend on the picture's name and the tile's place, so for these
methods grouping changes nothing but the rounding of sums.

Added pictures. If pictures do not depend on each other, a run on a finished output makes only the
missing files: those of added or changed pictures, and deleted ones. If a source has the same pixels
but other metadata, its file is rewritten with the new metadata and not computed again. The output
of a deleted picture stays. The clean reference of a changed picture moves to workdir/earlier. A
method that trains makes missing files of a finished output again from all pictures.

Memory. The host holds a group's tiles (3 bytes a pixel), their delta and its copies (12 bytes each)
and one whole picture with its delta. The devices hold tiles and delta, or as many batches as
`config.performance.shard_batches` says.

No level changes where a mask is black or where a picture is fully transparent (colours there are
invisible and often arbitrary); no step of the method moves delta there either.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from udp_jax import registry
from udp_jax.data import config_changes, images, manifest, marks, originals, picture_folder
from udp_jax.data import output as outputs
from udp_jax.data.image_set import ImageSet
from udp_jax.data.picture_files import PictureFile, PictureFolder
from udp_jax.errors import ConfigError, OutputError
from udp_jax.models.context import Model
from udp_jax.ops import tiles
from udp_jax.protections import spectrum
from udp_jax.protections.options import Spectrum
from udp_jax.runtime import files, loop, processes
from udp_jax.runtime import workdir as workdir_lib
from udp_jax.stages import protect as protect_lib
from udp_jax.stages import tiles as tiles_lib
from udp_jax.stages.records import Row, Run
from udp_jax.stages.tiles import Pictures, Tiling

_log = logging.getLogger(__name__)

# Pictures in a group of a method that treats each picture apart.
_FEW = 8


def protect(row: Row, model: Model, pictures: Pictures, output: Path, run: Run) -> dict[str, Any]:
  """Protects a folder of pictures at full resolution, and resumes an unfinished run.

  Args:
    row: method, options and budget.
    model: the attacked model, for tiles.
    pictures: the pictures to protect, and how they are cut into tiles.
    output: folder for the protected pictures.
    run: devices, draws, batches and checkpoints; `copies` is the result of `copies_of` if the
      caller inspected the working folder before clearing it.

  Returns:
    The manifest of the output folder.

  Raises:
    ConfigError: the method cannot work on tiles, or its options do not fit.
    DivergedError, OutputError, Preempted: as `loop.run`; finished files stay.
  """
  check(row, model, pictures.tiling, imitated=pictures.imitated is not None)
  found, names = pictures.found, pictures.names
  records = run.folder / "files"
  extend = not run.overwrite and check_finished(row, pictures, output)
  place = str(found.folder.resolve())
  masks, texts = pictures.mask_files, pictures.texts
  sources = {
    file.name: picture_folder.source_of(
      file,
      folder=place,
      mask_sha256=originals.file_sha256(masks[file.name]) if masks else None,
      caption=texts.get(file.relative) if texts else None,
    )
    for file in found.files
  }
  done = picture_folder.progress_of(output, records, sources, finished=extend)
  _say_what_is_kept(row.name, names, done)
  if extend and picture_folder.is_finished(output, names, done, found.beside):
    _log.info("protect %s: nothing to do, %d pictures are finished", row.name, len(names))
    return manifest.read_manifest(output) or {}
  copies = copies_of(pictures, output) if run.copies is None else run.copies
  stay = [f"{name}.png" for name in (*done.entries, *done.others)]
  if extend:
    gone = [f"{name}.png" for name in done.changed]
    outputs.check_replaced(output, only=gone, copies=copies)
  else:
    manifest.check_output(output, overwrite=run.overwrite, keep=stay, copies=copies)
  _write_clean(pictures, progress=run.progress)
  entries = done.entries
  created: list[Path] | None = None
  kept_names = [*names, *done.others]

  def claim() -> list[Path]:
    return picture_folder.claim(
      output,
      kept_names,
      keep=[*entries, *done.others],
      replace=done.changed,
      overwrite=run.overwrite,
      extend=extend,
      copies=copies,
      beside=found.beside,
    )

  size = pictures.tiling.files_at_a_time or (len(names) if _trains(row) else _FEW)
  groups = _groups(found.files, size, sources, entries, run.folder, trains=_trains(row))
  work = [
    sum(grid.num_tiles for grid in _grids(pictures, [f for f in group if f.name not in entries]))
    for group, _ in groups
  ]
  started, tiles_done = time.monotonic(), 0
  try:
    for number, (group, folder) in enumerate(groups, 1):
      label = f"protect {row.name}" + (f" {number}/{len(groups)}" if len(groups) > 1 else "")
      if all(file.name in entries for file in group):
        continue
      own, left = work[number - 1], sum(work[number:])
      part = dataclasses.replace(run.at(folder, label), afterwards=left / own)
      grids, deltas = _perturb(row, model, pictures, group, part)
      if created is None:  # Only now, so that a run that fails earlier leaves no folder.
        created = claim()
      with tqdm(
        total=len(names),
        initial=len(entries),
        desc="written",
        unit="file",
        disable=not run.progress,
      ) as bar:
        for file, grid, delta in zip(group, grids, deltas):
          if file.name not in entries:
            clean, made = tiles_lib.protected(pictures, row, file, grid, delta)
            entries[file.name] = picture_folder.write(
              output,
              records,
              file.name,
              made,
              clean=clean.pixels,
              bound=picture_folder.Bound(row.radius_255, tiles_lib.limit_of(row, clean.pixels)),
              source=sources[file.name],
              notes=file.notes,
            )
            bar.update()
      # The records now say what is done, and checkpoints are large.
      workdir_lib.discard_checkpoints(folder / "checkpoints")
      tiles_done += own
      loop.say_left(
        f"protect {row.name}: {len(entries)} of {len(names)} pictures are done",
        (time.monotonic() - started) / tiles_done * left,
      )
    if created is None:
      claim()
    by_name = {file.name: file for file in found.files}
    for name in done.stale:
      clean = images.read_large(pictures.clean / f"{name}.png")
      saved = images.read_large(output / f"{name}.png")
      made = images.read_large(by_name[name].path)._replace(pixels=saved.pixels)
      entries[name] = picture_folder.write(
        output,
        records,
        name,
        made,
        clean=clean.pixels,
        bound=picture_folder.Bound(row.radius_255, tiles_lib.limit_of(row, clean.pixels)),
        source=sources[name],
        notes=by_name[name].notes,
      )
  except BaseException:
    if created is not None and not entries:
      picture_folder.withdraw(output, created)
    raise
  record = {**row.record, "origin": found.origin}
  tiling = pictures.tiling._asdict()
  record["tiling"] = tiling | {"files_at_a_time": size, "masked": bool(masks)}
  listed = [entries[name] for name in names] + [done.others[name] for name in sorted(done.others)]
  return picture_folder.finish(output, listed, record, beside=found.beside)


def copies_of(pictures: Pictures, output: Path) -> frozenset[str]:
  """Names of pictures that also exist outside `output`, as `originals.copies` finds them."""
  return originals.copies(output, pictures.workdir, _sources(pictures.found))


def _sources(found: PictureFolder) -> dict[str, dict[str, Any]]:
  place = str(found.folder.resolve())
  return {file.name: picture_folder.source_of(file, folder=place) for file in found.files}


def check_finished(row: Row, pictures: Pictures, output: Path) -> bool:
  """Whether the output is finished with the same settings, so that only missing files are made.

  Raises:
    OutputError: the output is finished with other settings, or (for a method that learns from all
      pictures together) from other pictures.
  """
  made = manifest.read_manifest(output)
  if made is None or (output / manifest.INCOMPLETE).exists():
    return False
  tiling, config = pictures.tiling, row.record["config"]
  size = tiling.files_at_a_time
  was = made.get("tiling") or {}
  same = made.get("row") == row.name and "config" in made
  same = same and all(was.get(n) == v for n, v in tiling._asdict().items() if v or n == "overlap")
  same = same and (size or _trains(row) or was.get("files_at_a_time") == _FEW)
  same = same and not config_changes.changed_from_published(made["config"], config)
  # The manifest keeps only the name of a folder, not its path.
  same = same and not config_changes.names_other_places(config, pictures.workdir)
  if same and _trains(row):
    same = (made.get("origin") or {}).get("sha256") == pictures.found.origin["sha256"]
  if not same:
    raise _finished(output)
  return True


def may_extend(row: str, output: Path) -> bool:
  """Whether `output` is a finished output of this row, to which a run may add files."""
  made = manifest.read_manifest(output)
  return made is not None and made.get("row") == row


def treats_apart(row: Row) -> bool:
  """Whether each picture's protection depends on that picture alone."""
  return not _trains(row)


def _finished(output: Path) -> OutputError:
  return OutputError(
    f"cannot write {output}: it is a finished output already; choose another folder or allow "
    "overwriting it (--overwrite)"
  )


def _say_what_is_kept(row: str, names: Sequence[str], done: picture_folder.Progress) -> None:
  if done.entries and len(done.entries) < len(names):
    _log.info("protect %s: %d of %d pictures are finished", row, len(done.entries), len(names))
  if done.changed:
    _log.info("protect %s: %d pictures have changed and are made again", row, len(done.changed))
  if done.stale:
    _log.info("protect %s: %d files get the new metadata of their source", row, len(done.stale))
  if done.others:
    _log.warning(
      "protect %s: %d protected files stay whose pictures are no longer in the input: %s",
      *(row, len(done.others), ", ".join(sorted(done.others))),
    )


def _groups(
  found: Sequence[PictureFile],
  size: int,
  sources: dict[str, dict[str, Any]],
  entries: dict[str, Any],
  scratch: Path,
  *,
  trains: bool,
) -> list[tuple[Sequence[PictureFile], Path]]:
  """Returns the groups of pictures, each with the folder of its checkpoints.

  A group stays the same until all of its files are written, even if pictures are added meanwhile,
  because its checkpoint belongs to these pictures.
  """
  chunks = [found[i : i + size] for i in range(0, len(found), size)]
  if trains:
    folders = (
      [scratch]
      if len(chunks) == 1
      else [scratch / f"group_{n + 1:05d}" for n in range(len(chunks))]
    )
    return list(zip(chunks, folders))
  path = scratch / "groups.json"
  plan: dict[str, list[list[str]]] = files.read_json(path) if path.exists() else {}
  if not plan:
    numbers = ["."] if len(chunks) == 1 else [f"group_{n + 1:05d}" for n in range(len(chunks))]
    plan = {number: [_stamp(f, sources) for f in chunk] for number, chunk in zip(numbers, chunks)}
  now = {tuple(_stamp(file, sources)): file for file in found}
  kept, planned = {}, set()
  for number, members in plan.items():
    group = [now.get(tuple(stamp)) for stamp in members]
    whole = [file for file in group if file is not None]
    if len(whole) == len(group) and any(file.name not in entries for file in whole):
      kept[number] = whole
      planned |= {file.name for file in whole}
    elif len(whole) < len(group):  # Its checkpoint belongs to other pictures.
      workdir_lib.discard_checkpoints(scratch / number / "checkpoints")
  rest = [file for file in found if file.name not in entries and file.name not in planned]
  last = max([int(number.removeprefix("group_")) for number in plan if number != "."], default=1)
  for start in range(0, len(rest), size):
    last += 1
    kept[f"group_{last:05d}"] = rest[start : start + size]
  if any(number not in plan for number in kept) or not path.exists():
    stamped = {n: [_stamp(f, sources) for f in group] for n, group in kept.items()}
    files.write_json(path, plan | stamped)
  return [(group, scratch / number) for number, group in kept.items()]


def _stamp(file: PictureFile, sources: dict[str, dict[str, Any]]) -> list[str]:
  decides_nothing = ("sha256", "folder")
  source = {n: value for n, value in sources[file.name].items() if n not in decides_nothing}
  return [file.name, hashlib.sha256(files.to_json(source).encode()).hexdigest()]


def check(row: Row, model: Model, tiling: Tiling, *, imitated: bool = False) -> None:
  """Raises ConfigError, before anything is written, for a row that tiles do not support.

  Args:
    row: the row.
    model: the attacked model, for tiles.
    tiling: how pictures are cut.
    imitated: whether the pictures of the row that it imitates are at hand.
  """
  shape = model.model.image_shape
  if shape[:2] != (tiling.tile_size, tiling.tile_size):
    raise ConfigError(f"the model is for pictures of {shape}, tiles are square")
  if processes.count() > 1:
    raise ConfigError("full-size pictures are protected by one process; --resize works on several")
  if not 0 <= tiling.overlap < tiling.tile_size:
    raise ConfigError(f"overlap is {tiling.overlap}: it must be in [0, {tiling.tile_size})")
  if tiling.overlap < (needed := least_overlap(row)):
    raise ConfigError(
      f"overlap is {tiling.overlap}: tiles of this band must blend over {needed} pixels or more, "
      "or their edges are sharper than it"
    )
  if tiling.files_at_a_time < 0:
    raise ConfigError("files_at_a_time must be 1 or more, or 0 for the method's default")
  trained = model.params is not None
  protection = protect_lib.build_protection(row, model.model, trained=trained)
  if protection.needs_reference and not imitated:
    raise ConfigError(f"{row.name} imitates another row's pictures: it needs --resize")


def least_overlap(row: Row) -> int:
  """Returns the fewest pixels over which tiles of a row must blend: 0 without a band.

  Raises:
    ConfigError: the row's band cannot be used.
  """
  known = registry.fields(registry.constructor("udp_jax.protections", row.method))
  names = [field.name for field in dataclasses.fields(Spectrum) if field.name in known]
  chosen = {name: row.options.get(name, known[name].default) for name in names}
  return spectrum.blending(Spectrum(**chosen))


def identified(pictures: PictureFolder, identity: dict[str, Any]) -> ImageSet:
  """Returns an empty set for `settings.check`, identified by the hash of `identity`."""
  digest = hashlib.sha256(files.to_json(identity).encode()).hexdigest()
  origin = {**pictures.origin, "sha256": digest}
  return ImageSet(np.zeros((0, 1, 1, 3), np.uint8), (), origin=origin)


def _trains(row: Row) -> bool:
  """Whether the method of a row trains a surrogate on the pictures."""
  constructor = registry.constructor("udp_jax.protections", row.method)
  return "train_steps" in registry.fields(constructor)


def _write_clean(pictures: Pictures, *, progress: bool) -> None:
  """Writes the 8-bit reference at full resolution; files that are complete are kept.

  No reference is lost: those of deleted pictures stay, those of changed pictures move to
  workdir/earlier.
  """
  workdir, found, names = pictures.workdir, pictures.found, pictures.names
  folder, records = pictures.clean, workdir / "stages" / "clean"
  sources = _sources(found)
  finished = (folder / manifest.MANIFEST).exists()
  done = picture_folder.progress_of(folder, records, sources, finished=finished)
  if finished and done.is_done(names):
    return
  for name in done.changed:
    _put_aside(folder / f"{name}.png", workdir / "earlier", name)
  entries = done.entries
  picture_folder.claim(
    folder,
    [*names, *done.others],
    keep=[*entries, *done.others],
    extend=finished,
    beside=found.beside,
  )
  with tqdm(found.files, desc="clean reference", unit="file", disable=not progress) as bar:
    for file in bar:
      if file.name not in entries or file.name in done.stale:
        picture = images.read_large(file.path)
        entries[file.name] = picture_folder.write(
          folder, records, file.name, picture, source=sources[file.name], notes=file.notes
        )
  record = {"method": marks.CLEAN, "origin": found.origin}
  listed = [entries[name] for name in names] + [done.others[name] for name in sorted(done.others)]
  picture_folder.finish(folder, listed, record, beside=found.beside)


def _put_aside(path: Path, folder: Path, name: str) -> None:
  """Moves the clean reference of a changed picture to a name that no later run replaces."""
  target = folder / f"{name}-{manifest.file_sha256(path)[:12]}.png"
  with files.output_errors(target):
    target.parent.mkdir(parents=True, exist_ok=True)
    path.replace(target)
  _log.info("the clean reference of %s before it changed is kept: %s", name, target)


def _grids(pictures: Pictures, group: Sequence[PictureFile]) -> list[tiles.Grid]:
  size, overlap = pictures.tiling.tile_size, pictures.tiling.overlap
  return [tiles.plan(file.height, file.width, size, overlap=overlap) for file in group]


def _perturb(
  row: Row, model: Model, pictures: Pictures, group: Sequence[PictureFile], run: Run
) -> tuple[list[tiles.Grid], list[np.ndarray]]:
  """Runs the method on a group; returns each picture's grid and the deltas of its tiles."""
  size, grids = pictures.tiling.tile_size, _grids(pictures, group)
  count = sum(grid.num_tiles for grid in grids)
  _log.info(
    "%s: %d pictures in %d tiles of %dx%d, about %.3g GiB",
    *(run.label, len(group), count, size, size),
    # Tiles, delta on the device, its copy on the host, and another while a checkpoint is written.
    count * size * size * 3 * (1 + 3 * 4) / 2**30,
  )
  batches = tiles_lib.batches(pictures, row, group, grids, run)
  _, delta = protect_lib.run_rounds(row, model, batches, count, run)
  ends = np.cumsum([grid.num_tiles for grid in grids])
  return grids, np.split(delta, ends[:-1])
