"""A study of pictures as they are: protected at full resolution by several methods, and measured.

  workdir/config.json             what is run
  workdir/clean/                  the 8-bit reference at full resolution
  workdir/protected/<row>/        protected files and manifest.json
  workdir/measured/<row>.json     numbers of the row
  workdir/report.json .html       written last

What is measured is what the methods fight for, on the saved files and with draws that no method has
seen: the loss that the model is left with as it is. What a model learns from the pictures is the
business of `experiments.train` and `experiments.impress`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from udp_jax import evaluation, pictures, promises, prompts, run_config, tile_batches
from udp_jax.data import builtin, captions, files, images, manifest, picture_folder
from udp_jax.data.picture_folder import PictureFile, PictureFolder
from udp_jax.errors import ConfigError
from udp_jax.models import factory
from udp_jax.models.base import DiffusionModel
from udp_jax.models.factory import Opened
from udp_jax.ops import tiles, timesteps
from udp_jax.pictures import Tiling
from udp_jax.report import build as report_build
from udp_jax.report import text
from udp_jax.study import CLEAN

_log = logging.getLogger(__name__)

# Side of what the report shows of a picture, and how many pictures.
_SHOWN_PIXELS = 192
_SHOWN_PICTURES = 8


class Job(NamedTuple):
  """A folder of pictures, and the model that is to learn nothing from them.

  Attributes:
    opened: of `factory.open_model`.
    model: the same for tiles of the size that is asked for.
    found: the pictures.
    tiling: how they are cut and grouped.
    texts: a caption by relative path; empty for models without text.
    cond_of: a picture's conditioning; None for models without text.
  """

  opened: Opened
  model: DiffusionModel
  found: PictureFolder
  tiling: Tiling
  texts: dict[str, str]
  cond_of: Callable[[PictureFile], np.ndarray] | None


def open_job(
  config: Any,
  folder: Path,
  *,
  tile_size: int = 0,
  overlap: int = -1,
  files_at_a_time: int = 0,
  prompt: str | None = None,
) -> Job:
  """Reads a folder of pictures and the model of a config.

  Args:
    config: of a study.
    folder: of pictures of any sizes, with captions (`data.captions`) or without.
    tile_size: side of a tile; 0 for the model's own size.
    overlap: of tiles, pixels; negative for an eighth of a tile.
    files_at_a_time: see `pictures.Tiling`.
    prompt: caption of the pictures that have none.

  Raises:
    ConfigError, MissingDataError, BadDataError: the model, its tiles or the pictures.
  """
  if tile_size:
    tile_batches.check_tile_size(tile_size)
    with config.unlocked():
      config.model.image_size = tile_size
  opened = factory.open_model(config.model, config.performance)
  model = pictures.for_tiles(opened.model, tile_size) if tile_size else opened.model
  size = model.image_shape[0]
  tiling = Tiling(size, size // 8 if overlap < 0 else overlap, files_at_a_time)
  for row in config.rows:
    if row != CLEAN:  # Before pictures are read.
      pictures.check(config, row, model, opened.params, tiling)
  found = picture_folder.list_pictures(
    folder,
    limit=config.data.limit or None,
    seed=config.seed,
    strict=config.data.strict,
    classes=tuple(config.data.classes) or None,
  )
  if opened.pipeline is None or opened.pipeline.tokenizer is None:
    if prompt is not None:
      raise ConfigError("a prompt is for models with a text encoder; this one has none")
    return Job(opened, model, found, tiling, {}, None)
  with config.unlocked():
    config.model.uncond_ids = tuple(opened.pipeline.tokenizer([""])[0].tolist())
  written = captions.read_captions(folder, [file.relative for file in found.files])
  texts = {file.relative: written.get(file.relative, prompt or "") for file in found.files}
  names = sorted(set(texts.values()))
  embedded = prompts.embed(opened.model, opened.params, opened.pipeline.tokenizer(names))
  by_text = dict(zip(names, embedded, strict=True))
  return Job(opened, model, found, tiling, texts, lambda file: by_text[texts[file.relative]])


def check_workdir(
  config: Any,
  workdir: Path,
  job: Job,
  *,
  replace: bool = False,
  apart: bool = False,
  **more: Any,
) -> None:
  """`run_config.check` for such a job; `more` is what else decides the result.

  With `apart`, pictures and captions are no part of what the folder belongs to: they may come
  later, and each file's record says what it was made of.

  Raises:
    ConfigError: the folder belongs to another run.
    OutputError: see `run_config.check`.
  """
  identity = {"pictures": job.found.origin["sha256"], "captions": job.texts}
  identity |= {**more, **job.tiling._asdict()}
  if apart:
    identity = {"pictures": "apart", **job.tiling._asdict()}
  run_config.check(config, workdir, pictures.identified(job.found, identity), replace=replace)


def run(
  config: Any, workdir: Path, *, evaluate: bool = True, progress: bool = True
) -> tuple[dict[str, Any], dict[str, Any]] | None:
  """Protects the pictures of `config.data.source` by every row; (report, assets) if evaluated.

  Raises:
    UserError, loop.Preempted: see the stages.
  """
  run_config.check_values(config)
  folder = _source(config, workdir)
  settings = config.pictures
  job = open_job(
    config,
    folder,
    tile_size=settings.tile_size,
    overlap=settings.overlap,
    files_at_a_time=settings.files_at_a_time,
    prompt=config.data.prompt or None,
  )
  check_workdir(config, workdir, job)
  rows = list(dict.fromkeys(config.rows))
  for row in rows:
    # A finished folder is kept, as everywhere.
    if row != CLEAN and not manifest.is_complete(workdir / "protected" / row):
      pictures.protect(
        config,
        row,
        job.found,
        workdir,
        workdir / "protected" / row,
        job.model,
        job.opened.params,
        job.tiling,
        cond_of=job.cond_of,
        texts=job.texts,
        progress=progress,
      )
  if not evaluate:
    return None
  measured = {row: _measured(config, row, job, workdir) for row in rows}
  table = [
    {"name": row, "metrics": {n: evaluation.summarise([v]) for n, v in metrics.items()}}
    for row, metrics in measured.items()
  ]
  return _report(config, table, job, workdir)


def _source(config: Any, workdir: Path) -> Path:
  """The folder of pictures; for "builtin", one that is filled with the installed photographs."""
  if config.data.source != "builtin":
    return Path(config.data.source.removeprefix("folder:")).expanduser()
  folder = workdir / "photographs"
  for name in config.pictures.photographs:
    found = builtin.find_photograph(name)
    files.write_bytes(folder / f"{name}{found.suffix}", found.read_bytes())
  return folder


def _folder(workdir: Path, row: str) -> Path:
  return workdir / CLEAN if row == CLEAN else workdir / "protected" / row


def _measured(config: Any, row: str, job: Job, workdir: Path) -> dict[str, float]:
  """The numbers of one row, now or from before."""
  path = workdir / "measured" / f"{row}.json"
  if not path.exists():
    _log.info("measuring %s", row)
    files.write_json(path, _measure(config, row, job, workdir))
  found = files.read_json(path)
  return {name: float("nan") if value is None else value for name, value in found.items()}


def _measure(config: Any, row: str, job: Job, workdir: Path) -> dict[str, float | None]:
  cut, conds, quality = [], [], []
  for file in job.found.files:
    saved = images.read_image(_folder(workdir, row) / f"{file.name}.png").pixels
    grid = tiles.plan(file.height, file.width, job.tiling.tile_size, overlap=0)
    cut.append(tiles.cut(saved, grid))
    if job.cond_of is not None:
      conds.append(np.repeat(job.cond_of(file)[None], grid.num_tiles, axis=0))
    if row != CLEAN:
      clean = images.read_image(_folder(workdir, CLEAN) / f"{file.name}.png").pixels
      radius_255 = promises.row_radius_255(config, row)
      quality.append(evaluation.picture_metrics(clean[None], saved[None], radius_255))
  every = np.concatenate(cut)
  # Evenly spread over all pictures, the same tiles for every row.
  limit = min(config.evaluation.loss_images, len(every))
  chosen = np.linspace(0, len(every) - 1, limit, dtype=int)
  cond = np.concatenate(conds)[chosen] if conds else None
  metrics = {
    f"loss_{name}": evaluation.denoising_loss(job.model, seed=config.seed + 1, probs=probs)(
      job.opened.params, every[chosen], cond
    )
    for name, probs in _draws(job.model).items()
  }
  for name in ("psnr", "ssim", "rms_ratio", "max_abs_255"):
    values = np.array([found[name] for found in quality])
    reduce = np.max if name == "max_abs_255" else np.mean
    metrics[name] = float(reduce(values)) if len(values) else float("nan")
  return {name: value if np.isfinite(value) else None for name, value in metrics.items()}


def _draws(model: DiffusionModel) -> dict[str, Any]:
  """Distributions over timesteps at which the loss is measured."""
  steps = len(model.schedule.alphas_cumprod)
  return {
    "uniform": timesteps.uniform(steps),
    "early": timesteps.schedule_power(model.schedule, 2.0, 0.0),
  }


def _columns() -> list[dict[str, Any]]:
  column = report_build.column
  return [
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
  config: Any, table: list[dict[str, Any]], job: Job, workdir: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
  count = len(job.found.files)
  sizes = sorted({(file.width, file.height) for file in job.found.files})
  record = manifest.read_manifest(workdir / CLEAN) or {}
  rows = [row | report_build.naming(config, row["name"]) for row in table]
  levels = text.budget({"rows": rows, "radius_255": config.radius_255})
  summary = (
    f"{count} pictures from {sizes[0][0]}x{sizes[0][1]} to {sizes[-1][0]}x{sizes[-1][1]} pixels "
    f"were protected at full resolution, in tiles of {job.tiling.tile_size}, with at most "
    f"{levels} of 255 levels of change."
  )
  report = report_build.frame(config, summary, rows, _columns()) | {
    "steps": [
      ["Protect.", "Every picture gets a small hidden change, at its full resolution."],
      ["Measure.", "The model's own loss on the saved files says how hard they are to explain."],
    ],
    "feature_label": "",
    "data": {
      "source": str(record.get("origin", {}).get("source", config.data.source)),
      "train_images": count,
      "holdout_images": 0,
      "image_size": job.tiling.tile_size,
      "notes": [f"The pictures below are windows of {_SHOWN_PIXELS} pixels from their middle."],
    },
    "curves": {"victims": {}, "protection": report_build.rounds(config, workdir)},
    "timesteps": report_build.timestep_curves(config, job.model),
  }
  shown = job.found.files[:_SHOWN_PICTURES]
  windows = {row["name"]: _windows(_folder(workdir, row["name"]), shown) for row in table}
  clean = windows.pop(CLEAN, None)
  assets = {} if clean is None else {"clean": clean, "protected": windows}
  return report, assets


def _windows(folder: Path, shown: tuple[PictureFile, ...]) -> np.ndarray:
  """The middle of every picture, mirrored out where it is smaller: (n, S, S, 3)."""
  made = []
  for file in shown:
    pixels = images.read_image(folder / f"{file.name}.png").pixels
    top, left = (max(0, (length - _SHOWN_PIXELS) // 2) for length in pixels.shape[:2])
    part = pixels[top : top + _SHOWN_PIXELS, left : left + _SHOWN_PIXELS]
    grid = tiles.plan(part.shape[0], part.shape[1], _SHOWN_PIXELS, overlap=0)
    made.append(tiles.cut(part, grid)[0])
  return np.stack(made)
