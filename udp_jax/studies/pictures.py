"""A study that protects pictures at full resolution by several methods, and measures the result.

  workdir/config.json             settings of the run
  workdir/clean/                  the 8-bit reference at full resolution
  workdir/protected/<row>/        protected files and manifest.json
  workdir/measured/<row>.json     metrics of the row
  workdir/learned/<row>/          what a model learned from the row, if it was asked (`learning`)
  workdir/report.json .html       written last

It measures what the methods optimise, on the saved files and with draws that no method has seen:
the loss of the fixed model. Where `config.threat` names a way to fine-tune, it also shows what a
model learns from each row; `experiments.impress` measures that.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from udp_jax.data import builtin, captions, images, manifest, masks, picture_files
from udp_jax.data.marks import CLEAN
from udp_jax.data.picture_files import PictureFile
from udp_jax.errors import ConfigError
from udp_jax.metrics import denoising, statistics, visibility
from udp_jax.models import factory
from udp_jax.models.context import Model
from udp_jax.ops import tiles, timesteps
from udp_jax.report import study as study_report
from udp_jax.report import text
from udp_jax.runtime import files
from udp_jax.stages import protect_pictures
from udp_jax.stages import tiles as tiles_lib
from udp_jax.stages.tiles import Pictures, Tiling
from udp_jax.studies import build, learning
from udp_jax.studies import rows as rows_lib
from udp_jax.studies import settings as settings_lib
from udp_jax.studies import training_sets_report as report_build
from udp_jax.studies.build import Study
from udp_jax.studies.learning import Learned, Learner

_log = logging.getLogger(__name__)

# (params, uint8 (N, H, W, 3), conditioning) -> mean denoising loss.
Loss = Callable[..., float]

# Side in pixels of the pictures in the report, and their largest number.
_SHOWN_PIXELS = 192
_SHOWN_PICTURES = 8
_SHOWN_SAMPLES = 16
# Pictures shown as they are, and pictures shown of what was learned, where only small ones are.
_WHOLE, _TAUGHT = 2, 3


class Cutting(NamedTuple):
  """How the user wants a folder of pictures cut into tiles.

  Attributes:
    tile_size: side of a tile in pixels; 0 for the model's own size.
    overlap: pixels over which neighbouring tiles blend; negative for an eighth of a tile, and as
      many as a row's band needs.
    files_at_a_time: pictures in a group; 0 for the method's default.
  """

  tile_size: int = 0
  overlap: int = -1
  files_at_a_time: int = 0


def open_pictures(
  config: Any,
  folder: Path,
  workdir: Path,
  cutting: Cutting,
  *,
  prompt: str | None = None,
  progress: bool = True,
  model: Model | None = None,
) -> tuple[Study, Pictures]:
  """Opens a folder of pictures and the model of a config.

  Args:
    config: settings of a study.
    folder: pictures of any sizes, with or without captions (`data.captions`).
    workdir: working folder.
    cutting: how the pictures are cut.
    prompt: caption for pictures that have none.
    progress: whether to show progress bars.
    model: the model, if it is already open; None opens that of `config.model`.

  Returns:
    The study, with its model for tiles, and the pictures. The study's config records what was
    decided here: the tile size and the token ids of the empty prompt.

  Raises:
    ConfigError, MissingDataError, BadDataError: the model, its tiles or the pictures do not work.
  """
  tile_size = cutting.tile_size
  if tile_size:
    tiles_lib.check_tile_size(tile_size)
    config = settings_lib.frozen(config, {"model.image_size": tile_size})
  if model is None:
    model = factory.open_model(config.model, config.performance)
  if tile_size:
    model = model._replace(model=tiles_lib.for_tiles(model.model, tile_size))
  size = model.model.image_shape[0]
  rows = [rows_lib.row(config, row, model) for row in config.rows if row != CLEAN]
  overlap = cutting.overlap
  if overlap < 0:
    overlap = max(size // 8, *map(protect_pictures.least_overlap, rows), 0)
  tiling = Tiling(size, overlap, cutting.files_at_a_time)
  for row in rows:  # Before pictures are read.
    protect_pictures.check(row, model, tiling, imitated=row.imitates in config.rows)
  found = picture_files.list_pictures(
    folder,
    limit=config.data.limit or None,
    seed=config.seed,
    strict=config.data.strict,
    classes=tuple(config.data.classes) or None,
  )
  pictures = Pictures(found, tiling, workdir)
  if model.tokenizer is None:
    if prompt is not None:
      raise ConfigError("a prompt is for models with a text encoder; this one has none")
  else:
    config = settings_lib.frozen(config, {"model.uncond_ids": model.uncond_ids})
    written = captions.read_captions(folder, [file.relative for file in found.files])
    texts = {file.relative: written.get(file.relative, prompt or "") for file in found.files}
    names = sorted(set(texts.values()))
    embedded = model.embeddings(names)
    assert embedded is not None  # There is a tokenizer.
    by_text = dict(zip(names, embedded, strict=True))
    pictures = pictures._replace(texts=texts, cond_of=lambda file: by_text[texts[file.relative]])
  return build.open_study(config, workdir, model, progress=progress), pictures


def check_workdir(
  study: Study, pictures: Pictures, *, replace: bool = False, apart: bool = False, **more: Any
) -> None:
  """`settings.check` for pictures of any size; `more` holds other values that decide the result.

  With `apart`, the identity of the folder leaves out pictures and captions: they may be added
  later, because each file's record says what it was made from.

  Raises:
    ConfigError: the folder belongs to another run.
    OutputError: as `settings.check`.
  """
  found, tiling = pictures.found, pictures.tiling._asdict()
  identity = {"pictures": found.origin["sha256"], "captions": pictures.texts}
  identity |= {**more, **tiling}
  if apart:
    identity = {"pictures": "apart", **tiling}
  identified = protect_pictures.identified(found, identity)
  settings_lib.check(study.config, study.workdir, identified, replace=replace)


def protect_row(
  study: Study,
  name: str,
  pictures: Pictures,
  output: Path,
  *,
  overwrite: bool = False,
  copies: Collection[str] | None = None,
) -> dict[str, Any]:
  """Protects pictures by one row; returns the manifest of the output folder.

  Args:
    study: from `open_pictures`.
    name: an entry of `config.protections`, or a method.
    pictures: from `open_pictures`.
    output: where the protected pictures are written.
    overwrite: as `Run`.
    copies: as `Run`.

  Raises:
    ConfigError, DivergedError, OutputError, Preempted: as `protect_pictures.protect`.
  """
  row = study.row(name)
  imitated = _folder(study.workdir, row.imitates or CLEAN)
  if row.imitates is not None and manifest.is_complete(imitated):
    # Without overlap, as blended noise would be weaker than what it imitates.
    tiling = pictures.tiling._replace(overlap=0)
    pictures = pictures._replace(imitated=imitated, tiling=tiling)
  if row.trains_text and (tokenizer := study.model.tokenizer) is not None:
    # Fixed embeddings could not be trained.
    texts = pictures.texts
    pictures = pictures._replace(cond_of=lambda file: tokenizer([texts[file.relative]])[0])
  run = study.protect_run(row, name, overwrite=overwrite, copies=copies)
  return protect_pictures.protect(row, study.model, pictures, output, run)


class Asked(NamedTuple):
  """A folder of pictures to protect by one row.

  Attributes:
    method: an entry of `config.protections`, or a method.
    folder: pictures of any sizes.
    output: where the protected pictures are written.
    workdir: working folder; the 8-bit reference is in workdir/clean.
    cutting: how the pictures are cut.
    mask: a mask, or a folder of masks with the pictures' names; "" protects everything.
    prompt: caption for pictures that have none.
    overwrite: as `Run`.
    progress: whether to show progress bars.
  """

  method: str
  folder: Path
  output: Path
  workdir: Path
  cutting: Cutting = Cutting()
  mask: str = ""
  prompt: str | None = None
  overwrite: bool = False
  progress: bool = True


def protect_folder(
  config: Any, asked: Asked, model: Model | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Protects a folder of pictures; returns the manifest and the origin of the pictures.

  Args:
    config: settings of a study, frozen.
    asked: what is protected, and where to.
    model: as for `open_pictures`.

  Raises:
    ConfigError, MissingDataError, BadDataError: the model or the pictures cannot be used, or the
      working folder belongs to another run.
    DivergedError, OutputError, Preempted: as `protect_pictures.protect`.
  """
  study, pictures = open_pictures(
    settings_lib.frozen(config, {"data.image_size": 0}),
    asked.folder,
    asked.workdir,
    asked.cutting,
    prompt=asked.prompt,
    progress=asked.progress,
    model=model,
  )
  found, output = pictures.found, asked.output
  if asked.mask:
    pictures = pictures._replace(mask_files=masks.find(asked.mask, found.files))
  digest = masks.sha256(pictures.mask_files) if pictures.mask_files else None
  row, overwrite = study.row(asked.method), asked.overwrite
  if not overwrite:
    protect_pictures.check_finished(row, pictures, output)
  # Checked before anything in the work folder may be cleared.
  copies = protect_pictures.copies_of(pictures, output)
  if overwrite:
    manifest.check_output(output, overwrite=True, copies=copies)
  apart = protect_pictures.treats_apart(row)
  check_workdir(study, pictures, replace=overwrite, apart=apart, masks=digest)
  made = protect_row(study, asked.method, pictures, output, overwrite=overwrite, copies=copies)
  return made, found.origin


def run(
  config: Any, workdir: Path, *, evaluate: bool = True, progress: bool = True
) -> tuple[dict[str, Any], dict[str, Any]] | None:
  """Protects the pictures of `config.data.source` by every row; (report, assets) if evaluated.

  Raises:
    UserError, Preempted: as the stages.
  """
  settings_lib.check_values(config)
  asked = config.pictures
  study, pictures = open_pictures(
    config,
    _source(config, workdir),
    workdir,
    Cutting(asked.tile_size, asked.overlap, asked.files_at_a_time),
    prompt=config.data.prompt or None,
    progress=progress,
  )
  # The folder's record has the pictures' hash in the place of these.
  taught = {"windows": asked.windows, "smallest_window": asked.smallest_window}
  taught |= {"learn_up_to": asked.learn_up_to} if asked.learn_up_to else {}
  check_workdir(study, pictures, **(taught if learning.is_asked(config) else {}))
  learner = Learner(study, pictures) if evaluate and learning.is_asked(config) else None
  rows = list(dict.fromkeys(config.rows))
  imitates = {row: row != CLEAN and study.row(row).imitates is not None for row in rows}
  for row in sorted(rows, key=imitates.__getitem__):  # What is imitated comes first.
    output = workdir / "protected" / row
    # A finished folder is kept, as in all studies.
    if row != CLEAN and not manifest.is_complete(output):
      protect_row(study, row, pictures, output)
  if not evaluate:
    return None
  losses = _losses(study)
  measured = {row: _measured(study, row, pictures, losses) for row in rows}
  learned = {} if learner is None else {row: learner.learned(row) for row in rows}
  table = []
  for row, metrics in measured.items():
    metrics |= learned[row].metrics if row in learned else {}
    spread = {n: statistics.over_seeds([v]) for n, v in metrics.items()}
    table.append({"name": row, "metrics": spread})
  return _report(study, table, pictures, learned)


def _source(config: Any, workdir: Path) -> Path:
  """Folder of the pictures; "builtin" fills one with installed photographs and their captions."""
  if config.data.source != "builtin":
    return Path(config.data.source.removeprefix("folder:")).expanduser()
  folder, lines = workdir / "photographs", []
  for name in config.pictures.photographs:
    subject, _, side = name.partition("@")
    found = builtin.find_photograph(subject)
    if side and not side.isdecimal():
      raise ConfigError(f"config.pictures.photographs: {name} should be NAME or NAME@PIXELS")
    file = f"{subject}_{side}.png" if side else f"{subject}{found.suffix}"
    if side:
      images.write_png(folder / file, builtin.shrunk(images.read_pixels(found), int(side)))
    else:
      files.write_bytes(folder / file, found.read_bytes())
    lines.append(json.dumps({"file_name": file, "text": f"a photo of {subject}"}))
  files.write_bytes(folder / "metadata.jsonl", "\n".join([*lines, ""]).encode())
  return folder


def _folder(workdir: Path, row: str) -> Path:
  return workdir / CLEAN if row == CLEAN else workdir / "protected" / row


def _measured(
  study: Study, row: str, pictures: Pictures, losses: dict[str, Loss]
) -> dict[str, float]:
  """Returns the metrics of one row; measures them unless an earlier run did."""
  path = study.workdir / "measured" / f"{row}.json"
  if not path.exists():
    _log.info("measuring %s", row)
    files.write_json(path, _measure(study, row, pictures, losses))
  found = files.read_json(path)
  return {name: float("nan") if value is None else value for name, value in found.items()}


def _measure(
  study: Study, row: str, pictures: Pictures, losses: dict[str, Loss]
) -> dict[str, float | None]:
  config, workdir = study.config, study.workdir
  cut, conds, quality = [], [], []
  for file in pictures.found.files:
    saved = images.read_image(_folder(workdir, row) / f"{file.name}.png").pixels
    grid = tiles.plan(file.height, file.width, pictures.tiling.tile_size, overlap=0)
    cut.append(tiles.cut(saved, grid))
    if pictures.cond_of is not None:
      conds.append(np.repeat(pictures.cond_of(file)[None], grid.num_tiles, axis=0))
    if row != CLEAN:
      clean = images.read_image(pictures.clean / f"{file.name}.png").pixels
      radius_255 = rows_lib.row_radius_255(config, row)
      quality.append(visibility.picture_metrics(clean[None], saved[None], radius_255))
  every = np.concatenate(cut)
  # The tiles are spread evenly over all pictures, and are the same for every row.
  limit = min(config.evaluation.loss_images, len(every))
  chosen = np.linspace(0, len(every) - 1, limit, dtype=int)
  cond = np.concatenate(conds)[chosen] if conds else None
  params = study.model.params
  metrics = {f"loss_{name}": loss(params, every[chosen], cond) for name, loss in losses.items()}
  for name in ("psnr", "ssim", "rms_ratio", "max_abs_255"):
    values = np.array([found[name] for found in quality])
    reduce = np.max if name == "max_abs_255" else np.mean
    metrics[name] = float(reduce(values)) if len(values) else float("nan")
  return {name: value if np.isfinite(value) else None for name, value in metrics.items()}


def _losses(study: Study) -> dict[str, Loss]:
  """Returns the losses that are measured, by the timesteps that they draw; compiled once."""
  model, seed = study.model.model, study.config.seed + 1
  early = timesteps.schedule_power(model.schedule, 2.0, 0.0)
  return {
    "uniform": denoising.denoising_loss(model, seed=seed),
    "early": denoising.denoising_loss(model, seed=seed, probs=early),
  }


def _columns(learns: bool) -> list[dict[str, Any]]:
  column = study_report.column
  learned = [
    column(
      "nearest_clean",
      "Samples to clean pictures",
      "Mean distance of a drawn picture from the nearest clean window, in features of a network. "
      "Larger: the model draws something else.",
      "higher",
      1,
    ),
    column(
      "loss_learned",
      "Loss after learning",
      "Denoising loss on the clean pictures of the model that learned from the row. Larger: it "
      "learned less of them.",
      "higher",
      4,
    ),
  ]
  return (learned if learns else []) + [
    column(
      "loss_uniform",
      "Denoising loss",
      "Mean loss of the model, as it is, on tiles of the saved pictures, at timesteps and noises "
      "that no method has seen. Larger: harder to explain, and so to learn.",
      "higher",
      4,
    ),
    column(
      "loss_early",
      "Loss, early timesteps",
      "The same with timesteps drawn as EUDP draws them, where the perturbation is still seen.",
      "higher",
      4,
    ),
    column("psnr", "PSNR (dB)", "Protected against clean; larger is less visible.", "higher", 2),
    column("ssim", "SSIM", "Protected against clean; 1 is identical.", "higher", 3),
    column("rms_ratio", "RMS / budget", "How much of the budget is used.", None, 2),
    column("max_abs_255", "Largest change", "In 8-bit levels, of all saved files.", None, 0),
  ]


def _report(
  study: Study, table: list[dict[str, Any]], pictures: Pictures, learned: dict[str, Learned]
) -> tuple[dict[str, Any], dict[str, Any]]:
  config, workdir, found = study.config, study.workdir, pictures.found.files
  count = len(found)
  sizes = sorted({(file.width, file.height) for file in found})
  record = manifest.read_manifest(workdir / CLEAN) or {}
  rows = [row | rows_lib.naming(config, row["name"]) for row in table]
  levels = text.budget({"rows": rows, "radius_255": config.radius_255})
  summary = (
    f"{count} pictures from {sizes[0][0]}x{sizes[0][1]} to {sizes[-1][0]}x{sizes[-1][1]} pixels "
    f"were protected at full resolution, in tiles of {pictures.tiling.tile_size}, with at most "
    f"{levels} of 255 levels of change."
  )
  steps = [
    ["Protect.", "Every picture gets a small hidden change, at its full resolution."],
    ["Measure.", "The model's own loss on the saved files says how hard they are to explain."],
  ]
  more: dict[str, Any] = {}
  notes = [f"The pictures below are windows of {_SHOWN_PIXELS} pixels from their middle."]
  side = config.pictures.learn_up_to
  if learned:
    more["learned"] = (
      f"The same small model was fine-tuned on {config.pictures.windows} pieces of the pictures of "
      "each row, and then drew these. The less they look like those of “clean”, the less it "
      "learned of the pictures."
    )
    if side:
      more["learned"] += (
        " Left: pictures that it learned from. Right: what it drew, not selected; pictures one "
        f"above the other start from the same noise. It learns pictures of {side} pixels, so it "
        "was given small copies, each protected at its own size: shrinking the large picture would "
        "average the protection away."
      )
      notes = []
    steps.append(
      ["Learn.", "For every row, a model is fine-tuned on pieces of its pictures, then it draws."]
    )
  report = (
    study_report.frame(config, summary, rows, _columns(bool(learned)))
    | more
    | {
      "steps": steps,
      "feature_label": "",
      "data": {
        "source": str(record.get("origin", {}).get("source", config.data.source)),
        "train_images": count,
        "holdout_images": 0,
        "image_size": pictures.tiling.tile_size,
        "notes": notes,
      },
      "curves": {"victims": {}, "protection": report_build.rounds(config, workdir)},
      "timesteps": report_build.timestep_curves(config, study.model.model),
    }
  )
  names = [row["name"] for row in table]
  if learned and side:
    large = [file for file in found if min(file.height, file.width) > side]
    small = tuple(file for file in found if file not in large)
    size = pictures.tiling.tile_size
    assets: dict[str, Any] = {
      "whole": {
        file.name: {n: _saved(_folder(workdir, n), file) for n in names} for file in large[:_WHOLE]
      },
      "learned": {n: _windows(_folder(workdir, n), small[:_TAUGHT], size) for n in names},
    }
  else:
    shown = found[:_SHOWN_PICTURES]
    windows = {n: _windows(_folder(workdir, n), shown, _SHOWN_PIXELS) for n in names}
    clean = windows.pop(CLEAN, None)
    assets = {} if clean is None else {"clean": clean, "protected": windows}
  assets["samples"] = {row: found.samples[:_SHOWN_SAMPLES] for row, found in learned.items()}
  return report, assets


def _saved(folder: Path, file: PictureFile) -> np.ndarray:
  return images.read_image(folder / f"{file.name}.png").pixels


def _windows(folder: Path, shown: tuple[PictureFile, ...], size: int) -> np.ndarray:
  """Crops the middle of every picture, (n, S, S, 3); smaller pictures are padded by mirroring."""
  made = []
  for file in shown:
    pixels = _saved(folder, file)
    top, left = (max(0, (length - size) // 2) for length in pixels.shape[:2])
    part = pixels[top : top + size, left : left + size]
    grid = tiles.plan(part.shape[0], part.shape[1], size, overlap=0)
    made.append(tiles.cut(part, grid)[0])
  return np.stack(made)
