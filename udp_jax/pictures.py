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
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from udp_jax import lookup, placement, processes, stages, streaming, study, tile_batches
from udp_jax.data import files, picture_folder
from udp_jax.data.image_set import ImageSet
from udp_jax.data.picture_folder import PictureFile, PictureFolder
from udp_jax.errors import ConfigError
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
  overwrite: bool = False,
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
    overwrite: replace a finished folder of ours.
    progress: show bars.

  Returns:
    The manifest of the output folder.

  Raises:
    ConfigError: the method cannot work on tiles, or its options do not fit.
    DivergedError, OutputError, loop.Preempted: see `loop.run`; finished files stay.
  """
  check(config, row, model, params, tiling)
  scratch = workdir / "stages" / f"protect_{row}"
  names = [file.name for file in pictures.files]
  _write_clean(pictures, workdir, progress=progress)
  job = Job(config, row, model, params, tiling, workdir / "clean", mask_files or {}, cond_of)
  entries = picture_folder.finished(output, scratch / "files", names)
  if entries and len(entries) < len(names):
    _log.info("protect %s: %d of %d pictures are finished", row, len(entries), len(names))
  created: list[Path] | None = None
  size = tiling.files_at_a_time or (len(names) if _trains(config, row) else _FEW)
  groups = [pictures.files[i : i + size] for i in range(0, len(names), size)]
  try:
    for number, group in enumerate(groups, 1):
      if all(file.name in entries for file in group):
        continue
      label, folder = f"protect {row}", scratch
      if len(groups) > 1:
        label, folder = f"{label} {number}/{len(groups)}", scratch / f"group_{number:05d}"
      grids, deltas = _perturb(job, group, folder, label, progress=progress)
      if created is None:  # Only now: a run that fails before leaves no folder.
        created = picture_folder.claim(
          output, names, keep=entries, overwrite=overwrite, beside=pictures.beside
        )
      with tqdm(
        total=len(names), initial=len(entries), desc="written", unit="file", disable=not progress
      ) as bar:
        for file, grid, delta in zip(group, grids, deltas):
          if file.name not in entries:
            clean, made = tile_batches.protected(job, file, grid, delta)
            entries[file.name] = picture_folder.write(
              output,
              scratch / "files",
              file.name,
              made,
              clean=clean.pixels,
              radius_255=config.radius_255,
              notes=file.notes,
            )
            bar.update()
      # The records say now what is done, and checkpoints are large.
      shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    if created is None:
      picture_folder.claim(output, names, keep=entries, overwrite=overwrite, beside=pictures.beside)
  except BaseException:
    if created is not None and not entries:
      picture_folder.withdraw(output, created)
    raise
  method = study.row_settings(config, row)[0]
  record = {"method": method, "row": row, "config": config.to_dict(), "seed": config.seed}
  record |= {"radius_255": config.radius_255, "origin": pictures.origin}
  record["tiling"] = tiling._asdict() | {"files_at_a_time": size, "masked": bool(mask_files)}
  finished = [entries[name] for name in names]
  return picture_folder.finish(output, finished, record, beside=pictures.beside)


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
  """The 8-bit reference at full resolution; what is there and whole is kept."""
  folder, records = workdir / "clean", workdir / "stages" / "clean"
  names = [file.name for file in pictures.files]
  entries = picture_folder.finished(folder, records, names)
  if len(entries) == len(names) and (folder / "manifest.json").exists():
    return
  picture_folder.claim(folder, names, keep=entries, overwrite=True, beside=pictures.beside)
  with tqdm(pictures.files, desc="clean reference", unit="file", disable=not progress) as bar:
    for file in bar:
      if file.name not in entries:
        picture = picture_folder.read(file.path)
        entries[file.name] = picture_folder.write(
          folder, records, file.name, picture, notes=file.notes
        )
  record = {"method": study.CLEAN, "origin": pictures.origin}
  made = [entries[name] for name in names]
  picture_folder.finish(folder, made, record, beside=pictures.beside)


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
