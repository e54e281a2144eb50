"""A study: training sets made from one set of pictures, a model trained on each, one table.

  workdir/config.json            what is run; a second run with another config is refused
  workdir/clean/ holdout/        the 8-bit reference, and pictures nobody trains on
  workdir/protected/<row>/       protected files and manifest.json
  workdir/stages/protect_<row>/  checkpoints and metrics.jsonl
  workdir/threats/<row>/seed<k>/ checkpoints, metrics.jsonl, model/, samples/, evaluation.json
  workdir/report.json .html      written last
Every part is resumable; what is on disk is not made again.
"""

from __future__ import annotations

import inspect
import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

from udp_jax import evaluation, lookup, parallel, protections, stages, threats
from udp_jax.data import files, manifest, sources
from udp_jax.data.image_set import ImageSet, split
from udp_jax.errors import ConfigError
from udp_jax.models import factory, features
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.models.ddpm_unet import UNet2DConfig
from udp_jax.randomness import stream

_log = logging.getLogger(__name__)

CLEAN = "clean"


def load_data(config: Any) -> tuple[ImageSet, ImageSet]:
  """The pictures to protect and the held-out ones of `config.data`.

  Raises:
    MissingDataError, BadDataError, ConfigError: see `data.sources.load`.
  """
  data = config.data
  pictures = sources.load(
    data.source,
    image_size=data.image_size or None,
    limit=data.limit or None,
    seed=config.seed,
    strict=data.strict,
    classes=tuple(data.classes) or None,
  )
  if not data.holdout:
    return pictures, pictures
  return split(pictures, holdout=data.holdout, seed=config.seed)


def row_settings(config: Any, row: str) -> tuple[str, int, str | None, dict[str, Any]]:
  """(method, num_rounds, row that it imitates, constructor options) of one row of the study.

  Raises:
    ConfigError: the row is not described by `config.protections`.
  """
  if row not in config.protections:
    known = ", ".join(sorted(config.protections))
    raise ConfigError(f"row {row!r} is not in config.protections; known: {CLEAN}, {known}")
  settings = dict(config.protections[row])
  method = settings.pop("method", row)
  rounds = settings.pop("num_rounds", config.num_rounds)
  of = settings.pop("of", None)
  accepted = inspect.signature(lookup.constructor("udp_jax.protections", method)).parameters
  for shared in ("radius", "step_size"):
    if shared in accepted:
      settings.setdefault(f"{shared}_255", config[f"{shared}_255"])
  return method, rounds, of, settings


def write_clean(config: Any, workdir: Path, *, holdout: bool = True) -> tuple[ImageSet, ImageSet]:
  """Loads the data and writes the 8-bit reference; returns the pictures to protect and held out.

  A finished folder is kept, so that a run goes on with the pictures that it began with.
  """
  clean, held_out = load_data(config)
  wanted = {"clean": clean, "holdout": held_out} if holdout else {"clean": clean}
  for name, pictures in wanted.items():
    folder = workdir / name
    record = {"method": CLEAN, "origin": pictures.origin}
    if not manifest.is_complete(folder):
      manifest.write_folder(
        folder,
        pictures.images,
        pictures.names,
        alphas=pictures.alphas,
        metadata=pictures.metadata,
        record=record,
      )
  return clean, held_out


def protect_row(
  config: Any,
  row: str,
  clean: ImageSet,
  workdir: Path,
  model: DiffusionModel,
  params: Params | None,
  *,
  folder: Path | None = None,
  overwrite: bool = False,
  progress: bool = True,
) -> np.ndarray:
  """The protected pictures of one row, uint8 (N, H, W, 3), made now or before.

  Args:
    config: of the study.
    row: of `config.protections`.
    clean: the 8-bit reference.
    workdir: of the study.
    model: the attacked model.
    params: its parameters, or None.
    folder: for the files; default workdir/protected/<row>.
    overwrite: replace a finished folder of ours.
    progress: show bars.

  Raises:
    ConfigError: the row, its method or its options do not fit.
  """
  method, rounds, of, options = row_settings(config, row)
  protection = protections.build(method, model, options)
  if protection.needs_params and params is None:
    raise ConfigError(
      f"{method} attacks a trained model: give --config.model.path=FOLDER (diffusers layout; "
      "`python -m experiments.train` makes one)"
    )
  reference = None
  if protection.needs_reference:
    if of is None:
      raise ConfigError(f"{row} imitates another row: set config.protections.{row}.of")
    reference = protect_row(config, of, clean, workdir, model, params, progress=progress)
  return stages.protect_stage(
    protection,
    clean,
    folder or workdir / "protected" / row,
    key=stream(jax.random.key(config.seed), f"protect/{of or row}"),
    params=params,
    mesh=parallel.make_mesh(),
    radius_255=config.radius_255,
    num_rounds=rounds if protection.phases or protection.needs_params else 1,
    global_batch_size=config.global_batch_size,
    scratch_folder=workdir / "stages" / f"protect_{row}",
    checkpoint_every=config.checkpoint.every_rounds,
    label=f"protect {row}",
    record={"method": method, "row": row, "config": config.to_dict(), "seed": config.seed},
    reference=reference,
    overwrite=overwrite,
    progress=progress,
  )


def train_row(
  config: Any,
  row: str,
  seed: int,
  images: np.ndarray,
  workdir: Path,
  threat: threats.Threat,
  model: DiffusionModel,
  unet: UNet2DConfig,
  *,
  progress: bool = True,
) -> tuple[Params, np.ndarray]:
  """Trains and samples one model; returns its parameters and its samples, made now or before."""
  folder = workdir / "threats" / row / f"seed{seed}"
  # The same key for every row: the victims differ in their training set and in nothing else.
  key = stream(jax.random.key(config.seed), f"threat/{seed}")
  if (folder / "model" / "model_index.json").exists():
    params = factory.load(folder / "model")[2]
  else:
    params = stages.train_stage(
      threat,
      images,
      key=key,
      params=None,
      mesh=parallel.make_mesh(),
      global_batch_size=config.global_batch_size,
      scratch_folder=folder,
      checkpoint_every=config.checkpoint.every_steps,
      steps_per_call=config.performance.steps_per_call,
      label=f"train {row} seed {seed}",
      progress=progress,
    )
    factory.save(folder / "model", model, unet, params)
  samples = stages.sample_stage(
    threat,
    params,
    folder / "samples",
    key=stream(key, "sample"),
    num_samples=config.num_samples,
    per_device_batch_size=config.performance.sample_batch_size,
    record={"method": "samples", "row": row, "seed": seed},
    label=f"sample {row} seed {seed}",
    progress=progress,
  )
  return params, samples


def check_config(config: Any, workdir: Path) -> None:
  """Writes workdir/config.json, or refuses to mix two different studies in one folder.

  Rows and seeds may be added later, and settings that change only speed may change.

  Raises:
    ConfigError: what stands there differs in something that changes results.
  """
  path = workdir / "config.json"
  new = json.loads(files.to_json(config.to_dict()))
  if path.exists():
    old = json.loads(path.read_text())
    free = ("performance", "rows", "checkpoint", "protections", "threat", "title", "notice")
    changed = [k for k in new if k not in free and old.get(k) != new[k]]
    if old["threat"] | {"seeds": []} != new["threat"] | {"seeds": []}:
      changed.append("threat")
    for row in set(old.get("protections", {})) & set(new["protections"]):
      if old["protections"][row] != new["protections"][row]:
        changed.append(f"protections.{row}")
    if changed:
      raise ConfigError(
        f"{workdir} holds a run with another config ({', '.join(changed)} differ): choose another "
        "--workdir, or delete that folder"
      )
  files.write_json(path, new)


def run_study(
  config: Any, workdir: Path, *, evaluate: bool = True, progress: bool = True
) -> list[dict[str, Any]]:
  """Runs every row of `config.rows`; returns the report's rows (empty without `evaluate`).

  Raises:
    UserError, loop.Preempted: see the stages.
  """
  check_config(config, workdir)
  for row in config.rows:
    if row != CLEAN:
      row_settings(config, row)
  clean, holdout = write_clean(config, workdir)
  _log.info("%d pictures to protect, %d held out", len(clean.images), len(holdout.images))
  model, unet, params = factory.build(config.model, config.performance)
  training_sets = {}
  for row in config.rows:
    training_sets[row] = (
      clean.images
      if row == CLEAN
      else protect_row(config, row, clean, workdir, model, params, progress=progress)
    )
  if not evaluate:
    return []
  threat = threats.build(config.threat.name, model, dict(config.threat.options))
  judge = Judge(config, clean.images, holdout.images, model)
  results = []
  for seed in config.threat.seeds:
    for row, images in training_sets.items():
      path = workdir / "threats" / row / f"seed{seed}" / "evaluation.json"
      if not path.exists():
        trained, samples = train_row(
          config, row, seed, images, workdir, threat, model, unet, progress=progress
        )
        files.write_json(path, judge(images, trained, samples))
      results.append((row, json.loads(path.read_text())))
  return [
    {"name": row, "metrics": _spread([found for name, found in results if name == row])}
    for row in config.rows
  ]


def _spread(found: list[dict[str, Any]]) -> dict[str, Any]:
  return {
    name: evaluation.summarise([np.nan if f[name] is None else f[name] for f in found])
    for name in found[0]
  }


class Judge:
  """Measures one training set, its model and its samples against the held-out clean pictures."""

  def __init__(self, config: Any, clean: np.ndarray, holdout: np.ndarray, model: DiffusionModel):
    """Loads the feature network. Raises MissingDataError when its weights are not there."""
    weights = config.evaluation.weights or None
    self.extractor = features.load(config.evaluation.features, weights=weights)
    self._clean, self._holdout = clean, holdout
    self._radius_255 = config.radius_255
    self._real = features.extract(self.extractor, holdout)
    self._loss = evaluation.denoising_loss(model)
    self._limit = config.evaluation.loss_images

  def __call__(
    self, images: np.ndarray, params: Params, samples: np.ndarray
  ) -> dict[str, float | None]:
    """The numbers of one row and seed; None where one has no meaning."""
    generated = evaluation.distribution_metrics(
      self._real, features.extract(self.extractor, samples)
    )
    own = features.extract(self.extractor, images)
    metrics = {
      "fd_samples": generated["fd"],
      "fd_training_set": evaluation.distribution_metrics(self._real, own)["fd"],
      "precision": generated["precision"],
      "recall": generated["recall"],
      "mmd": generated["mmd"],
      "mmd_se": generated["mmd_se"],
      "loss_training_set": self._loss(params, images[: self._limit]),
      "loss_clean_holdout": self._loss(params, self._holdout[: self._limit]),
    }
    metrics |= evaluation.picture_metrics(self._clean, images, self._radius_255)
    return {name: float(v) if np.isfinite(v) else None for name, v in metrics.items()}
