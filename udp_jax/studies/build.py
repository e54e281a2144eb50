"""Builds what a study's config names: data, mesh, protections and models."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from udp_jax import protections, threats
from udp_jax.data import manifest, originals, sources
from udp_jax.data.image_set import ImageSet, split
from udp_jax.data.marks import CLEAN
from udp_jax.errors import ConfigError
from udp_jax.models import factory, sharded
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.models.context import Model
from udp_jax.ops.keys import stream
from udp_jax.runtime import mesh, processes
from udp_jax.stages import protect, train
from udp_jax.stages.records import Extra, Row, Run
from udp_jax.studies import rows, settings
from udp_jax.threats.base import Threat


class Study(NamedTuple):
  """A config and the objects that it names, opened once.

  Attributes:
    config: settings of the study, read-only.
    workdir: folder of the study.
    model: the model that the study attacks or trains.
    mesh: devices.
    progress: whether to show progress bars.
  """

  config: Any
  workdir: Path
  model: Model
  mesh: Mesh
  progress: bool = True

  def row(self, name: str) -> Row:
    """Returns a row of the config, with the record for its manifest."""
    return rows.row(self.config, name, self.model)

  def run(
    self,
    draws: str,
    folder: Path,
    label: str,
    *,
    checkpoint_every: int = 0,
  ) -> Run:
    """Returns the settings for running one stage of the study.

    Args:
      draws: name of the stage's random stream.
      folder: scratch folder of the stage, for checkpoints and metrics.
      label: name on the progress bar and in messages.
      checkpoint_every: as `Run`.
    """
    config, performance = self.config, self.config.performance
    return Run(
      mesh=self.mesh,
      folder=folder,
      key=stream(jax.random.key(config.seed), draws),
      label=label,
      global_batch_size=config.global_batch_size,
      steps_per_call=performance.steps_per_call,
      sample_batch_size=performance.sample_batch_size,
      shard_batches=performance.get("shard_batches", 0),
      progress=self.progress,
      checkpoint_every=checkpoint_every,
    )

  def protect_run(
    self, row: Row, name: str, *, overwrite: bool = False, copies: Collection[str] | None = None
  ) -> Run:
    """Returns the settings for protecting by a row.

    Args:
      row: from `row`.
      name: name of the row, in its scratch folder and in messages.
      overwrite: as `Run`.
      copies: as `Run`.
    """
    run = self.run(
      row.stream,
      self.workdir / "stages" / f"protect_{name}",
      f"protect {name}",
      checkpoint_every=self.config.checkpoint.every_rounds,
    )
    return dataclasses.replace(run, overwrite=overwrite, copies=copies)


def open_study(
  config: Any, workdir: Path, model: Model | None = None, *, progress: bool = True
) -> Study:
  """Opens the model and the devices that a config names.

  Args:
    config: settings of the study.
    workdir: folder of the study.
    model: the model, if it is already open; None opens the pixel model of `config.model`.
    progress: whether to show progress bars.

  Raises:
    ConfigError: a setting cannot be used.
    MissingDataError, BadDataError: the model's folder is missing or damaged.
  """
  settings.check_values(config)
  if model is None:
    functions, unet, params = factory.build(config.model, config.performance)
    model = Model(functions, params, unet)
  return Study(config, workdir, model, make_mesh(config), progress)


def load_data(config: Any) -> tuple[ImageSet, ImageSet]:
  """Returns the pictures to protect and the held-out pictures of `config.data`.

  Raises:
    MissingDataError, BadDataError, ConfigError: as `data.sources.load`.
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
  # The config field holds a fraction by default, so a number of pictures also arrives as a float.
  holdout = data.holdout if data.holdout < 1 else int(data.holdout)
  return split(pictures, holdout=holdout, seed=config.seed)


def check_sizes(config: Any, pictures: ImageSet, model: DiffusionModel) -> None:
  """Raises ConfigError unless the pictures have the model's size."""
  height, width = pictures.images.shape[1:3]
  if (height, width) != model.shape[:2]:
    size = model.shape[0]
    raise ConfigError(
      f"the pictures are {width}x{height}, the model is for {size}x{size}: set "
      f"--config.data.image_size={size}"
      + ("" if config.model.path else f" (or --config.model.unet.sample_size={height})")
    )


def build_protection(config: Any, name: str, model: Model) -> protections.Protection:
  """Builds the protection of a row.

  Args:
    config: settings of the study.
    name: an entry of `config.protections`, or a method.
    model: the attacked model.

  Raises:
    ConfigError: the row, its method or its options do not fit, or a trained model is needed.
  """
  asked = rows.settings(config, name, model)
  protection = protect.build_protection(asked, model.model, trained=model.params is not None)
  if asked.imitates is not None and protection.needs_reference:
    build_protection(config, asked.imitates, model)
  return protection


def make_mesh(config: Any) -> Mesh:
  """Makes the mesh of all devices that `config.performance` asks for.

  Raises:
    ConfigError: `config.performance.fsdp` does not divide the number of devices.
  """
  return mesh.make_mesh(fsdp=config.performance.get("fsdp", 1))


def build_trainer(study: Study) -> Threat:
  """Builds the threat for training, whose weights may be split over devices (not for sampling).

  Raises:
    ConfigError: the threat or an option is unknown.
  """
  split = sharded.split_weights(study.model.model, study.mesh)
  return threats.build(study.config.threat.name, split, dict(study.config.threat.options))


def write_pictures(pictures: ImageSet, folder: Path) -> None:
  """Writes unchanged pictures, the 8-bit reference. A finished folder is kept."""
  if not processes.from_main(lambda: manifest.is_complete(folder), f"look at {folder.name}"):
    rows = processes.share(len(pictures.images))
    manifest.write_folder(
      folder,
      pictures.images[rows],
      pictures.names,
      details=manifest.Details(rows, None, pictures.alphas, pictures.metadata, pictures.beside),
      record={
        "method": CLEAN,
        "origin": pictures.origin,
        "sources": originals.sources_of(pictures),
      },
    )


def protect_row(
  study: Study,
  name: str,
  clean: ImageSet,
  *,
  cond: np.ndarray | None = None,
  folder: Path | None = None,
  overwrite: bool = False,
  copies: Collection[str] | None = None,
) -> np.ndarray:
  """Returns the protected pictures of one row, uint8 (N, H, W, 3); protects them if needed.

  Args:
    study: the study that the row belongs to.
    name: an entry of `config.protections`, or a method.
    clean: the 8-bit reference.
    cond: (N, ...), conditioning of the model for each picture.
    folder: where the files are written; default workdir/protected/<row>.
    overwrite: as `Run`.
    copies: as `Run`.

  Raises:
    ConfigError: the row, its method or its options do not fit.
    DivergedError, OutputError, Preempted: as `stages.protect.protect`.
  """
  row, model = study.row(name), study.model
  protection = protect.build_protection(row, model.model, trained=model.params is not None)
  reference = None
  if protection.needs_reference:
    assert row.imitates is not None  # `build_protection` checked it.
    reference = protect_row(study, row.imitates, clean, cond=cond)
  run = study.protect_run(row, name, overwrite=overwrite, copies=copies)
  extra = Extra(reference, cond, None if folder is None else originals.sources_of(clean))
  target = folder or study.workdir / "protected" / name
  return protect.protect(row, model, clean, target, run, extra=extra)


def train_model(
  study: Study, images: np.ndarray, threat: Threat, run: Run, *, params: Params | None = None
) -> Params:
  """Trains a model of the study's kind on pictures and writes run.folder/model.

  Args:
    study: its model has the networks to train.
    images: uint8 (N, H, W, 3).
    threat: how to train, from `build_trainer`.
    run: draws, batch size and checkpoints.
    params: parameters to start from; None trains from scratch.

  Returns:
    The trained parameters, read from the folder if an earlier run made them.

  Raises:
    DivergedError, OutputError, Preempted: as `stages.train.train`.
  """
  folder, model = run.folder / "model", study.model
  index = folder / "model_index.json"
  if processes.from_main(index.exists, f"look at {run.label}"):
    return factory.load(folder)[2]
  trained = train.train(threat, images, params, run)
  assert model.unet is not None  # Only pixel models are trained from scratch.
  unet = model.unet
  processes.from_main(lambda: factory.save(folder, model.model, unet, trained), f"save {run.label}")
  return trained
