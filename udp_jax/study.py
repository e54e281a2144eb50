"""A study: training sets made from one set of pictures, a model trained on each, one table.

  workdir/config.json            what is run; a second run with another config is refused
  workdir/clean/ holdout/        the 8-bit reference, and pictures nobody trains on
  workdir/protected/<row>/       protected files and manifest.json
  workdir/stages/protect_<row>/  checkpoints and metrics.jsonl
  workdir/threats/<row>/seed<k>/ checkpoints, metrics.jsonl, model/, samples/, evaluation.json
  workdir/report.json .html      written last
Every part is resumable; what is on disk is not made again. Several processes run a study together,
on a working folder that they share; process 0 judges.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from udp_jax import (
  judging,
  lookup,
  parallel,
  placement,
  processes,
  promises,
  prompts,
  protections,
  run_config,
  stages,
  streaming,
  threats,
)
from udp_jax.data import files, manifest, originals, sources
from udp_jax.data.image_set import ImageSet, split
from udp_jax.errors import ConfigError
from udp_jax.models import factory, features
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.models.ddpm_unet import UNet2DConfig
from udp_jax.randomness import stream

_log = logging.getLogger(__name__)

CLEAN = promises.CLEAN
# Precision and recall look at the third nearest neighbour.
_MIN_HOLDOUT = 5


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
  # A number of pictures arrives as a float too: the field holds a fraction by default.
  holdout = data.holdout if data.holdout < 1 else int(data.holdout)
  return split(pictures, holdout=holdout, seed=config.seed)


def check_sizes(config: Any, pictures: ImageSet, model: DiffusionModel) -> None:
  """Raises ConfigError unless pictures and model are of one size."""
  height, width = pictures.images.shape[1:3]
  if (height, width) != model.shape[:2]:
    size = model.shape[0]
    raise ConfigError(
      f"the pictures are {width}x{height}, the model is for {size}x{size}: set "
      f"--config.data.image_size={size}"
      + ("" if config.model.path else f" (or --config.model.unet.sample_size={height})")
    )


def row_settings(config: Any, row: str) -> tuple[str, int, str | None, dict[str, Any]]:
  """(method, num_rounds, row that it imitates, constructor options) of one row of the study.

  Raises:
    ConfigError: neither `config.protections` nor `udp_jax.protections` knows the row.
  """
  if row not in config.protections and row not in protections.available():
    known = ", ".join(sorted({*config.protections, *protections.available()}))
    raise ConfigError(f"unknown method or row {row!r}; known: {known}")
  settings = dict(config.protections.get(row, {}))
  method = settings.pop("method", row)
  rounds = settings.pop("num_rounds", config.num_rounds)
  of = settings.pop("of", None)
  accepted = inspect.signature(lookup.constructor("udp_jax.protections", method)).parameters
  if "radius" in accepted:
    settings["radius_255"] = promises.row_radius_255(config, row)
  if "step_size" in accepted:
    settings.setdefault("step_size_255", config.step_size_255)
  if "decay_steps" in accepted:
    settings.setdefault("decay_steps", rounds)
  # Of the empty prompt, for guidance; known once the model's tokenizer is.
  if "uncond_ids" in accepted and config.model.get("uncond_ids"):
    settings.setdefault("uncond_ids", tuple(config.model.uncond_ids))
  for prompt in [name for name in settings if name.endswith("_prompt")]:
    if (ids := f"{prompt.removesuffix('_prompt')}_ids") in accepted:
      settings[ids] = prompts.token_ids(config.model.path, settings.pop(prompt))
  if "joint_gradients" in accepted and config.performance.get("joint_gradients"):
    settings.setdefault("joint_gradients", True)
  return method, rounds, of, settings


def build_protection(
  config: Any, row: str, model: DiffusionModel, params: Params | None, *, num_shards: int = 1
) -> protections.Protection:
  """The protection of a row.

  Args:
    config: of the study.
    row: of `config.protections`.
    model: the attacked model.
    params: its parameters, or None.
    num_shards: through which the pictures are streamed.

  Raises:
    ConfigError: the row, its method or its options do not fit, or a trained model is needed.
  """
  method, _, of, options = row_settings(config, row)
  if num_shards > 1:
    constructor = lookup.constructor("udp_jax.protections", method)
    options, _ = streaming.visit_options(constructor, options, num_shards)
  protection = protections.build(method, model, options)
  if protection.needs_params and params is None:
    raise ConfigError(
      f"{method} attacks a trained model: give --model=FOLDER (or --config.model.path=FOLDER) in "
      "diffusers' layout, or tiny_ldm for the one in the package; `python -m experiments.train` "
      "makes one"
    )
  if protection.needs_reference:
    if of is None:
      raise ConfigError(f"{row} imitates another row: set config.protections.{row}.of")
    build_protection(config, of, model, params)
  return protection


def make_mesh(config: Any) -> Mesh:
  """The mesh of all devices that `config.performance` asks for.

  Raises:
    ConfigError: `config.performance.fsdp` does not divide the number of devices.
  """
  return parallel.make_mesh(fsdp=config.performance.get("fsdp", 1))


def build_trainer(config: Any, model: DiffusionModel) -> threats.Threat:
  """The threat for training: its weights may be split over the devices. For sampling, they are not.

  Raises:
    ConfigError: an unknown threat or option.
  """
  split = placement.split_weights(model, make_mesh(config))
  return threats.build(config.threat.name, split, dict(config.threat.options))


def write_pictures(pictures: ImageSet, folder: Path) -> None:
  """Writes pictures as they are: the 8-bit reference. A finished folder is kept."""
  if not processes.from_main(lambda: manifest.is_complete(folder), f"look at {folder.name}"):
    rows = processes.share(len(pictures.images))
    manifest.write_folder(
      folder,
      pictures.images[rows],
      pictures.names,
      rows=rows,
      alphas=pictures.alphas,
      metadata=pictures.metadata,
      beside=pictures.beside,
      record={
        "method": CLEAN,
        "origin": pictures.origin,
        "sources": originals.sources_of(pictures),
      },
    )


def protect_row(
  config: Any,
  row: str,
  clean: ImageSet,
  workdir: Path,
  model: DiffusionModel,
  params: Params | None,
  *,
  cond: np.ndarray | None = None,
  folder: Path | None = None,
  overwrite: bool = False,
  copies: Collection[str] | None = None,
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
    cond: (N, ...), what a conditioned model is told of each picture.
    folder: for the files; default workdir/protected/<row>.
    overwrite: replace a finished folder of ours.
    copies: as in `manifest.write_folder`.
    progress: show bars.

  Raises:
    ConfigError: the row, its method or its options do not fit.
  """
  mesh = make_mesh(config)
  method, rounds, of, options = row_settings(config, row)
  shard_batches = config.performance.get("shard_batches", 0)
  num_shards, train_visits = 1, None
  if shard_batches:
    size = min(config.global_batch_size, len(clean.images))
    num_shards = streaming.count_shards(-(-len(clean.images) // size), shard_batches)
    constructor = lookup.constructor("udp_jax.protections", method)
    train_visits = streaming.visit_options(constructor, options, num_shards)[1]
  split_model = placement.split_weights(model, mesh)
  protection = build_protection(config, row, split_model, params, num_shards=num_shards)
  reference = None
  if protection.needs_reference:
    assert of is not None  # Checked when it was built.
    reference = protect_row(config, of, clean, workdir, model, params, cond=cond, progress=progress)
  return stages.protect_stage(
    protection,
    clean,
    folder or workdir / "protected" / row,
    key=stream(jax.random.key(config.seed), f"protect/{of or row}"),
    params=params,
    mesh=mesh,
    radius_255=promises.row_radius_255(config, row),
    spare_flat=promises.spared(config),
    num_rounds=1 if protection.drawn_once else rounds,
    global_batch_size=config.global_batch_size,
    scratch_folder=workdir / "stages" / f"protect_{row}",
    checkpoint_every=config.checkpoint.every_rounds,
    label=f"protect {row}",
    record={
      "method": method,
      "row": row,
      "config": config.to_dict(),
      "seed": config.seed,
      **promises.record(config, row),
    },
    reference=reference,
    cond=cond,
    shard_batches=shard_batches,
    train_visits=train_visits,
    overwrite=overwrite,
    copies=copies,
    sources=None if folder is None else originals.sources_of(clean),
    progress=progress,
  )


def train_model(
  config: Any,
  images: np.ndarray,
  folder: Path,
  threat: threats.Threat,
  model: DiffusionModel,
  unet: UNet2DConfig,
  *,
  key: jax.Array,
  label: str,
  params: Params | None = None,
  progress: bool = True,
) -> Params:
  """Trains on pictures and writes folder/model; returns the parameters, made now or before.

  Args:
    config: of the study.
    images: uint8 (N, H, W, 3).
    folder: for checkpoints, metrics and the model.
    threat: how to train, from `build_trainer`.
    model: what is trained.
    unet: its description, for the saved folder.
    key: root of every draw.
    label: for the progress bar.
    params: to start from; None starts afresh.
    progress: show a bar.

  Raises:
    DivergedError, OutputError, loop.Preempted: see `stages.train_stage`.
  """
  index = folder / "model" / "model_index.json"
  if processes.from_main(index.exists, f"look at {label}"):
    return factory.load(folder / "model")[2]
  trained = stages.train_stage(
    threat,
    images,
    key=key,
    params=params,
    mesh=make_mesh(config),
    global_batch_size=config.global_batch_size,
    scratch_folder=folder,
    checkpoint_every=config.checkpoint.every_steps,
    steps_per_call=config.performance.steps_per_call,
    label=label,
    progress=progress,
  )
  processes.from_main(lambda: factory.save(folder / "model", model, unet, trained), f"save {label}")
  return trained


def _judge(judge: judging.Judge, folder: Path, *measured: Any) -> None:
  files.write_json(folder / "evaluation.json", judge(*measured))


class Results(NamedTuple):
  """What a study found.

  Attributes:
    rows: one for each training set, {"name", "metrics"}, as in the report; empty without
      evaluation.
    model: what was attacked.
    feature_label: what a Frechet distance is called; "" without evaluation.
  """

  rows: list[dict[str, Any]]
  model: DiffusionModel
  feature_label: str


def run_study(
  config: Any, workdir: Path, *, evaluate: bool = True, progress: bool = True
) -> Results:
  """Protects, and with `evaluate` trains, samples and measures, every row of `config.rows`.

  Raises:
    UserError, loop.Preempted: see the stages.
  """
  run_config.check_values(config)
  rows = list(dict.fromkeys(config.rows))
  model, unet, params = factory.build(config.model, config.performance)
  for row in rows:
    if row != CLEAN:  # Before hours of work for the rows above it.
      build_protection(config, row, model, params)
  threat = threats.build(config.threat.name, model, dict(config.threat.options))
  trainer = build_trainer(config, model)
  if config.threat.options.get("sample_steps", 1) > len(model.schedule.alphas_cumprod):
    raise ConfigError("config.threat.options.sample_steps: more than the schedule has")
  extractor = None
  if evaluate:  # Before hours of work: the weights may be missing.
    weights = config.evaluation.weights or None
    extractor = features.load(config.evaluation.features, weights=weights)
  clean, holdout = load_data(config)
  check_sizes(config, clean, model)
  if evaluate and len(holdout.images) < _MIN_HOLDOUT:
    raise ConfigError(
      f"{len(holdout.images)} of {len(clean.images) + len(holdout.images)} pictures are held out, "
      f"judging needs {_MIN_HOLDOUT} or more: set --config.data.holdout, or give --noevaluate"
    )
  run_config.check(config, workdir, clean)
  write_pictures(clean, workdir / "clean")
  if len(holdout.images):
    write_pictures(holdout, workdir / "holdout")
  _log.info("%d pictures to protect, %d held out", len(clean.images), len(holdout.images))
  training_sets = {
    row: clean.images
    if row == CLEAN
    else protect_row(config, row, clean, workdir, model, params, progress=progress)
    for row in rows
  }
  if extractor is None:
    return Results([], model, "")
  judge = judging.Judge(config, clean.images, holdout.images, model, extractor, progress=progress)
  results: dict[str, list[dict[str, Any]]] = {row: [] for row in rows}
  for seed in config.threat.seeds:
    for row, images in training_sets.items():
      folder = workdir / "threats" / row / f"seed{seed}"
      name = f"{row} seed {seed}"
      if not processes.from_main((folder / "evaluation.json").exists, f"look at {name}"):
        # The same key for every row: the victims differ in their training set and nothing else.
        key = stream(jax.random.key(config.seed), f"threat/{seed}")
        trained = train_model(
          config,
          images,
          folder,
          trainer,
          model,
          unet,
          key=key,
          label=f"train {name}",
          progress=progress,
        )
        samples = stages.sample_stage(
          threat,
          trained,
          folder / "samples",
          key=stream(key, "sample"),
          num_samples=config.num_samples,
          per_device_batch_size=config.performance.sample_batch_size,
          record={"method": "samples", "row": row, "seed": seed},
          label=f"sample {name}",
          progress=progress,
        )
        processes.from_main(
          partial(
            _judge,
            judge,
            folder,
            images,
            trained,
            samples,
            name,
            promises.row_radius_255(config, row),
          ),
          f"judge {name}",
        )
      results[row].append(
        processes.from_main(partial(files.read_json, folder / "evaluation.json"), name)
      )
  table = [{"name": row, "metrics": judging.spread(found)} for row, found in results.items()]
  return Results(table, model, extractor.label)
