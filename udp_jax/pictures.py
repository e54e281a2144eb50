"""Protecting pictures as they are: of any size, by overlapping tiles of the model's size.

  workdir/clean/<name>.png            the 8-bit reference at full resolution
  workdir/stages/protect_<row>/       checkpoints and metrics.jsonl, of each group where there are
                                      several; a record of every finished file
  output/<name>.png, manifest.json    the protected pictures; the manifest comes last

The tiles of a *group* of pictures are one data set for `stages.run_rounds`; their deltas stay in
float32, are feathered into one delta for each picture, and that is rounded to 8 bits once, within
the budget (`ops.image.quantise_within`). A run that was killed goes on in the middle of a group
from its checkpoint, and otherwise at the next file.

Groups. A method that trains a surrogate learns from all pictures, so all of them are one group; the
tiles of all pictures are then in memory together. A method that attacks a model as it is, and
noise, works on a few pictures at a time. A tile's draws depend on the picture's name and the tile's
place, so for these methods grouping changes nothing but the rounding of sums.

Pictures that come later. Where pictures do not depend on each other, a run on a finished output
makes what is missing: pictures that were added or changed, files that were deleted. A file whose
source has the same pixels and other metadata is written again with these, and not computed again.
What was made of pictures that are gone stays. The clean reference of a changed picture is put into
workdir/earlier. A method that trains makes missing files of a finished output again from all
pictures.

Memory. The host holds a group's tiles (3 bytes a pixel), their delta and its copies (12 bytes each)
and one whole picture with its delta; the devices hold tiles and delta, or as many batches as
`config.performance.shard_batches` says.

Where a mask is black, and where a picture is fully transparent (its colours there are not seen, and
often not anything), not one level changes; no step of the method moves delta there either.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from udp_jax import (
  lookup,
  placement,
  processes,
  promises,
  run_config,
  stages,
  streaming,
  study,
  tile_batches,
)
from udp_jax.data import files, manifest, originals, picture_folder, work_folder
from udp_jax.data import output as outputs
from udp_jax.data.image_set import ImageSet
from udp_jax.data.picture_folder import PictureFile, PictureFolder
from udp_jax.errors import ConfigError, OutputError
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.ops import tiles
from udp_jax.randomness import stream
from udp_jax.tile_batches import Job
from udp_jax.tile_batches import Tiling as Tiling
from udp_jax.tile_batches import for_tiles as for_tiles

_log = logging.getLogger(__name__)

# Pictures of a group where they do not depend on each other.
_FEW = 8


def protect(
  config: Any,
  row: str,
  pictures: PictureFolder,
  workdir: Path,
  output: Path,
  model: DiffusionModel,
  params: Params | None,
  tiling: Tiling,
  *,
  mask_files: dict[str, Path] | None = None,
  cond_of: Callable[[PictureFile], np.ndarray] | None = None,
  texts: dict[str, str] | None = None,
  overwrite: bool = False,
  copies: Collection[str] | None = None,
  progress: bool = True,
) -> dict[str, Any]:
  """Protects a folder of pictures at full resolution, now or in the rest of an earlier run.

  Args:
    config: of a study; its row says the method.
    row: of `config.protections`, or a method.
    pictures: what to protect.
    workdir: for the clean reference, checkpoints and records.
    output: folder for the protected pictures.
    model: the attacked model.
    params: its parameters, or None.
    tiling: how pictures are cut and grouped.
    mask_files: of `data.masks.find`; None changes all of every picture.
    cond_of: a picture's conditioning for the model, without a batch axis; None for none.
    texts: the captions that `cond_of` is made of, by relative path.
    overwrite: replace a finished folder of ours.
    copies: of `copies_of`, where `workdir` was looked at before it was cleared.
    progress: show bars.

  Returns:
    The manifest of the output folder.

  Raises:
    ConfigError: the method cannot work on tiles, or its options do not fit.
    DivergedError, OutputError, loop.Preempted: see `loop.run`; finished files stay.
  """
  check(config, row, model, params, tiling)
  scratch = workdir / "stages" / f"protect_{row}"
  records = scratch / "files"
  names = [file.name for file in pictures.files]
  extend = not overwrite and check_finished(config, row, pictures, output, tiling, workdir)
  place = str(pictures.folder.resolve())
  sources = {
    file.name: picture_folder.source_of(
      file,
      folder=place,
      mask_sha256=originals.file_sha256(mask_files[file.name]) if mask_files else None,
      caption=texts.get(file.relative) if texts else None,
    )
    for file in pictures.files
  }
  done = picture_folder.progress_of(output, records, sources, finished=extend)
  _say_what_is_kept(row, names, done)
  if extend and picture_folder.is_finished(output, names, done, pictures.beside):
    _log.info("protect %s: nothing to do, %d pictures are finished", row, len(names))
    return manifest.read_manifest(output) or {}
  if copies is None:
    copies = copies_of(pictures, output, workdir)
  stay = [f"{name}.png" for name in (*done.entries, *done.others)]
  if extend:
    gone = [f"{name}.png" for name in done.changed]
    outputs.check_replaced(output, only=gone, copies=copies)
  else:
    manifest.check_output(output, overwrite=overwrite, keep=stay, copies=copies)
  _write_clean(pictures, workdir, progress=progress)
  job = Job(config, row, model, params, tiling, workdir / "clean", mask_files or {}, cond_of)
  entries = done.entries
  created: list[Path] | None = None
  kept_names = [*names, *done.others]

  def claim() -> list[Path]:
    return picture_folder.claim(
      output,
      kept_names,
      keep=[*entries, *done.others],
      replace=done.changed,
      overwrite=overwrite,
      extend=extend,
      copies=copies,
      beside=pictures.beside,
    )

  radius_255 = promises.row_radius_255(config, row)
  size = tiling.files_at_a_time or (len(names) if _trains(config, row) else _FEW)
  groups = _groups(pictures.files, size, sources, entries, scratch, trains=_trains(config, row))
  try:
    for number, (group, folder) in enumerate(groups, 1):
      label = f"protect {row}" + (f" {number}/{len(groups)}" if len(groups) > 1 else "")
      if all(file.name in entries for file in group):
        continue
      grids, deltas = _perturb(job, group, folder, label, progress=progress)
      if created is None:  # Only now: a run that fails before leaves no folder.
        created = claim()
      with tqdm(
        total=len(names), initial=len(entries), desc="written", unit="file", disable=not progress
      ) as bar:
        for file, grid, delta in zip(group, grids, deltas):
          if file.name not in entries:
            clean, made = tile_batches.protected(job, file, grid, delta)
            entries[file.name] = picture_folder.write(
              output,
              records,
              file.name,
              made,
              clean=clean.pixels,
              radius_255=radius_255,
              limit=tile_batches.limit_of(job, clean.pixels),
              source=sources[file.name],
              notes=file.notes,
            )
            bar.update()
      # The records say now what is done, and checkpoints are large.
      work_folder.discard_checkpoints(folder / "checkpoints")
    if created is None:
      claim()
    by_name = {file.name: file for file in pictures.files}
    for name in done.stale:
      clean = picture_folder.read(job.clean / f"{name}.png")
      saved = picture_folder.read(output / f"{name}.png")
      made = picture_folder.read(by_name[name].path)._replace(pixels=saved.pixels)
      entries[name] = picture_folder.write(
        output,
        records,
        name,
        made,
        clean=clean.pixels,
        radius_255=radius_255,
        limit=tile_batches.limit_of(job, clean.pixels),
        source=sources[name],
        notes=by_name[name].notes,
      )
  except BaseException:
    if created is not None and not entries:
      picture_folder.withdraw(output, created)
    raise
  method = study.row_settings(config, row)[0]
  record = {"method": method, "row": row, "config": config.to_dict(), "seed": config.seed}
  record |= promises.record(config, row) | {"origin": pictures.origin}
  record["tiling"] = tiling._asdict() | {"files_at_a_time": size, "masked": bool(mask_files)}
  listed = [entries[name] for name in names] + [done.others[name] for name in sorted(done.others)]
  return picture_folder.finish(output, listed, record, beside=pictures.beside)


def copies_of(pictures: PictureFolder, output: Path, workdir: Path) -> frozenset[str]:
  """Which pictures are elsewhere too, if an output is replaced; see `originals.copies`."""
  place = str(pictures.folder.resolve())
  found = {file.name: picture_folder.source_of(file, folder=place) for file in pictures.files}
  return originals.copies(output, workdir, found)


def check_finished(
  config: Any,
  row: str,
  pictures: PictureFolder,
  output: Path,
  tiling: Tiling,
  workdir: Path | None = None,
) -> bool:
  """Whether the output is a finished one of the same settings, in which something may be missing.

  Raises:
    OutputError: it is a finished one of other settings, or (for a method that learns from all
      pictures together) of other pictures.
  """
  made = manifest.read_manifest(output)
  if made is None or (output / manifest.INCOMPLETE).exists():
    return False
  size = tiling.files_at_a_time
  was = made.get("tiling") or {}
  same = made.get("row") == row and "config" in made
  same = same and all(was.get(n) == v for n, v in tiling._asdict().items() if v or n == "overlap")
  same = same and (size or _trains(config, row) or was.get("files_at_a_time") == _FEW)
  same = same and not run_config.changed_from_published(made["config"], config.to_dict())
  # The manifest has the name of a folder only.
  same = same and not (workdir and run_config.names_other_places(config, workdir))
  if same and _trains(config, row):
    same = (made.get("origin") or {}).get("sha256") == pictures.origin["sha256"]
  if not same:
    raise _finished(output)
  return True


def may_extend(row: str, output: Path) -> bool:
  """Whether a run of a row may find something to do in a finished output of that row."""
  made = manifest.read_manifest(output)
  return made is not None and made.get("row") == row


def treats_apart(config: Any, row: str) -> bool:
  """Whether each picture's protection depends on that picture alone."""
  return not _trains(config, row)


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
  """Pictures that are worked on together, and the folder of each group's checkpoints.

  A group stays as it is until all of its files are written, whatever is added meanwhile: its
  checkpoint belongs to these pictures.
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
    elif len(whole) < len(group):  # A checkpoint of other pictures.
      work_folder.discard_checkpoints(scratch / number / "checkpoints")
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


def check(
  config: Any, row: str, model: DiffusionModel, params: Params | None, tiling: Tiling
) -> None:
  """Raises ConfigError, before anything is written, for what cannot be done with tiles."""
  if model.image_shape[:2] != (tiling.tile_size, tiling.tile_size):
    raise ConfigError(f"the model is for pictures of {model.image_shape}, tiles are square")
  if processes.count() > 1:
    raise ConfigError("full-size pictures are protected by one process; --resize works on several")
  if not 0 <= tiling.overlap < tiling.tile_size:
    raise ConfigError(f"overlap is {tiling.overlap}: it must be in [0, {tiling.tile_size})")
  if tiling.files_at_a_time < 0:
    raise ConfigError("files_at_a_time must be 1 or more, or 0 for the method's default")
  if study.build_protection(config, row, model, params).needs_reference:
    raise ConfigError(f"{row} imitates another row's pictures: it needs --resize")


def identified(pictures: PictureFolder, identity: dict[str, Any]) -> ImageSet:
  """For `run_config.check`: an empty set of pictures, by the hash of what decides the result."""
  digest = hashlib.sha256(files.to_json(identity).encode()).hexdigest()
  origin = {**pictures.origin, "sha256": digest}
  return ImageSet(np.zeros((0, 1, 1, 3), np.uint8), (), origin=origin)


def _trains(config: Any, row: str) -> bool:
  """Whether the method of a row trains a surrogate on the pictures."""
  method = study.row_settings(config, row)[0]
  constructor = lookup.constructor("udp_jax.protections", method)
  return "train_steps" in inspect.signature(constructor).parameters


def _write_clean(pictures: PictureFolder, workdir: Path, *, progress: bool) -> None:
  """The 8-bit reference at full resolution; what is there and whole is kept.

  Nothing is lost: references of pictures that are gone stay, those of pictures that have changed go
  to workdir/earlier.
  """
  folder, records = workdir / "clean", workdir / "stages" / "clean"
  names = [file.name for file in pictures.files]
  place = str(pictures.folder.resolve())
  sources = {file.name: picture_folder.source_of(file, folder=place) for file in pictures.files}
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
    beside=pictures.beside,
  )
  with tqdm(pictures.files, desc="clean reference", unit="file", disable=not progress) as bar:
    for file in bar:
      if file.name not in entries or file.name in done.stale:
        picture = picture_folder.read(file.path)
        entries[file.name] = picture_folder.write(
          folder, records, file.name, picture, source=sources[file.name], notes=file.notes
        )
  record = {"method": study.CLEAN, "origin": pictures.origin}
  listed = [entries[name] for name in names] + [done.others[name] for name in sorted(done.others)]
  picture_folder.finish(folder, listed, record, beside=pictures.beside)


def _put_aside(path: Path, folder: Path, name: str) -> None:
  """Moves the clean reference of a picture that has changed to where nothing replaces it."""
  target = folder / f"{name}-{manifest.file_sha256(path)[:12]}.png"
  with files.output_errors(target):
    target.parent.mkdir(parents=True, exist_ok=True)
    path.replace(target)
  _log.info("the clean reference of %s before it changed is kept: %s", name, target)


def _perturb(
  job: Job, group: Sequence[PictureFile], folder: Path, label: str, *, progress: bool
) -> tuple[list[tiles.Grid], list[np.ndarray]]:
  """Runs the method on a group; each picture's grid and the deltas of its tiles."""
  config, row, size = job.config, job.row, job.tiling.tile_size
  grids = [tiles.plan(file.height, file.width, size, overlap=job.tiling.overlap) for file in group]
  count = sum(grid.num_tiles for grid in grids)
  _log.info(
    "%s: %d pictures in %d tiles of %dx%d, about %.3g GiB",
    *(label, len(group), count, size, size),
    # Tiles, delta on the device, its copy here, and as much again while a checkpoint is written.
    count * size * size * 3 * (1 + 3 * 4) / 2**30,
  )
  mesh = study.make_mesh(config)
  batches = tile_batches.batches(job, group, grids, mesh)
  method, num_rounds, _, options = study.row_settings(config, row)
  shard_batches = config.performance.get("shard_batches", 0)
  num_shards, train_visits = 1, None
  if shard_batches:
    num_shards = streaming.count_shards(len(batches.ids), shard_batches)
    constructor = lookup.constructor("udp_jax.protections", method)
    train_visits = streaming.visit_options(constructor, options, num_shards)[1]
  model = placement.split_weights(job.model, mesh)
  protection = study.build_protection(config, row, model, job.params, num_shards=num_shards)
  _, delta = stages.run_rounds(
    protection,
    batches,
    count,
    key=stream(jax.random.key(config.seed), f"protect/{row}"),
    params=job.params,
    mesh=mesh,
    num_rounds=1 if protection.drawn_once else num_rounds,
    scratch_folder=folder,
    checkpoint_every=config.checkpoint.every_rounds,
    label=label,
    shard_batches=shard_batches,
    train_visits=train_visits,
    progress=progress,
  )
  ends = np.cumsum([grid.num_tiles for grid in grids])
  return grids, np.split(delta, ends[:-1])
