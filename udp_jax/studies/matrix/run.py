"""Runs the matrix, cell by cell: every part that is not on disk yet.

A failure is recorded, and the next run tries that cell again. A killed run loses only the part that
it was making. In the end, all numbers are read back from the files of the cells.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from udp_jax.data import manifest
from udp_jax.data.image_set import ImageSet
from udp_jax.data.marks import CLEAN
from udp_jax.errors import ConfigError, OutputError, Preempted
from udp_jax.models import factory
from udp_jax.models.context import Model
from udp_jax.models.pipeline import Choices
from udp_jax.report import names
from udp_jax.report.names import NONE
from udp_jax.studies import build, settings
from udp_jax.studies.build import Study
from udp_jax.studies.matrix import catalogue, cells, measuring, purifying, threatening
from udp_jax.studies.matrix import plan as plan_lib
from udp_jax.studies.matrix import subject as subject_lib
from udp_jax.studies.matrix.finished import Finished
from udp_jax.studies.matrix.plan import Cell, Plan
from udp_jax.studies.matrix.purifying import PurifiedCells
from udp_jax.studies.matrix.threatening import EditCells, TrainCells

_log = logging.getLogger(__name__)

_NO_REFERENCE = "the cell of the clean pictures failed: nothing to compare with"


def run_matrix(config: Any, workdir: Path, plan: Plan, *, progress: bool = True) -> Finished:
  """Makes and measures every cell of a plan that does not exist yet.

  Args:
    config: settings of the matrix.
    workdir: folder of this matrix; one folder belongs to one config.
    plan: the cells to make.
    progress: whether to show progress bars.

  Raises:
    UserError: a setting does not fit, pictures or weights are missing, or the disk is full.
      Everything is built before any cell is made, so settings fail at once and not after hours.
    Preempted: the process was asked to stop.
  """
  matrix = _Matrix(config, workdir, plan, progress)
  matrix.make_pictures()
  for name in plan.threats:
    matrix.make_threat(name)
  return matrix.finished()


class _Matrix:
  def __init__(self, config: Any, workdir: Path, plan: Plan, progress: bool):
    self._workdir, self._plan = workdir, plan
    self._seconds: dict[str, float] = {}
    model, config = subject_lib.load(config)
    study = Study(config, workdir, model, build.make_mesh(config), progress)
    self._study, self._protecting = study, protecting(study)
    for row in plan.rows:
      if row != CLEAN:
        build.build_protection(self._protecting.config, row, self._protecting.model)
    self._clean, self._holdout = load_pictures(config, model)
    prior = subject_lib.load_prior(config)
    self._purifiers = {n: PurifiedCells(study, n, self._clean, prior) for n in plan.purifiers}
    self._threats = {name: threatening.build(study, name, self._clean) for name in plan.threats}
    self._measures = measuring.Measures(study, self._clean, self._holdout)
    settings.check(config, workdir, self._clean)
    build.write_pictures(self._clean, workdir / "clean")
    if len(self._holdout.images):
      build.write_pictures(self._holdout, workdir / "holdout")
    # Why the pictures of a (row, purifier) could not be protected or purified.
    self._missing: dict[tuple[str, str], str] = {}
    # The clean pictures after each purifier.
    self._unprotected: dict[str, np.ndarray] = {}
    _log.info(
      "%d pictures, %d held out; %d rows x %d purifiers x %d threats",
      len(self._clean.images),
      len(self._holdout.images),
      len(plan.rows),
      len(plan.purifiers),
      len(plan.threats),
    )

  def make_pictures(self) -> None:
    """Protects, purifies and measures the pictures of all rows."""
    study = self._protecting
    texts = subject_lib.texts_of(study.config.prompt, self._clean)
    embedded = study.model.embeddings(texts)
    for row in self._plan.rows:
      images: np.ndarray | None = None
      error = ""
      with self._timed("protect"):
        try:
          trains_text = row != CLEAN and study.row(row).trains_text
          cond = study.model.token_ids(texts) if trains_text else embedded
          images = self._protected(row, cond)
        except Exception as raised:
          error = _tolerated(raised, f"protect {row}")
      for purifier in self._plan.purifiers:
        cell = Cell(row, purifier)
        if images is None:
          self._give_up(cell, f"protect {row}: {error}")
          continue
        self._make_picture_cell(cell, images)

  def _protected(self, row: str, cond: np.ndarray | None) -> np.ndarray:
    if row == CLEAN:
      return self._clean.images
    return build.protect_row(self._protecting, row, self._clean, cond=cond)

  def _make_picture_cell(self, cell: Cell, protected: np.ndarray) -> None:
    try:
      with self._timed("purify"):
        images = self._purifiers[cell.purifier].make(cell, protected)
    except Exception as raised:
      self._give_up(cell, f"purify: {_tolerated(raised, cell.name)}")
      return
    if cell.row == CLEAN:
      self._unprotected[cell.purifier] = images
    if cells.is_done(cell, self._workdir):
      return
    try:
      with self._timed("measure"):
        if cell.purifier not in self._unprotected:
          raise RuntimeError(_NO_REFERENCE)
        values = self._measures.pictures(images, self._unprotected[cell.purifier])
        cells.write(cell, self._workdir, values)
    except Exception as raised:  # The pictures exist, so threats can still use them.
      cells.write_failure(cell, self._workdir, f"measure: {_tolerated(raised, cell.name)}")

  def _give_up(self, cell: Cell, error: str) -> None:
    cells.write_failure(cell, self._workdir, error)
    self._missing[cell.row, cell.purifier] = error

  def make_threat(self, name: str) -> None:
    """Makes all cells of one threat."""
    threat = self._threats[name]
    reference: dict[tuple[str, int], np.ndarray] = {}
    wanted = [cell for cell in plan_lib.threat_cells(self._plan, name)]
    for cell in wanted:
      if (missing := self._missing.get((cell.row, cell.purifier))) is not None:
        cells.write_failure(cell, self._workdir, f"no pictures: {missing}")
        continue
      # Cells that others are compared with are read even if they are finished.
      first = cell.row == CLEAN
      made = cell.folder(self._workdir) / threat.folder
      done = cells.is_done(cell, self._workdir) and manifest.is_complete(made)
      if done and not (first and isinstance(threat, EditCells)):
        continue
      try:
        with self._timed(name):
          if isinstance(threat, EditCells):
            self._make_edit(threat, cell, reference, measure=not done)
          else:
            self._make_samples(threat, cell)
      except Exception as raised:
        cells.write_failure(cell, self._workdir, _tolerated(raised, cell.name))

  def _make_edit(
    self,
    threat: EditCells,
    cell: Cell,
    reference: dict[tuple[str, int], np.ndarray],
    *,
    measure: bool,
  ) -> None:
    assert cell.seed is not None
    images = threat.make(cell, self._pictures(cell))
    if cell.row == CLEAN:
      reference[cell.purifier, cell.seed] = images
    whole, purified = (reference.get((name, cell.seed)) for name in (NONE, cell.purifier))
    if whole is None or purified is None:
      raise RuntimeError(_NO_REFERENCE)
    if measure:
      cells.write(cell, self._workdir, self._measures.edits(images, whole, purified))

  def _make_samples(self, threat: TrainCells, cell: Cell) -> None:
    pictures = self._pictures(cell)
    samples = threat.make(cell, pictures)
    # Quick if the cell was just trained: the parameters come from the last checkpoint.
    params = threat.params(cell, pictures)
    values, scalars = self._measures.samples(
      samples, params, labels=threat.labels, cond=threat.loss_cond
    )
    cells.write(cell, self._workdir, values, scalars)
    threat.forget(cell)

  def _pictures(self, cell: Cell) -> np.ndarray:
    return purifying.read(cell.pictures, self._workdir)

  def finished(self) -> Finished:
    """Counts the failed cells and collects the metrics."""
    wanted = [*plan_lib.picture_cells(self._plan)]
    for name in self._plan.threats:
      wanted.extend(plan_lib.threat_cells(self._plan, name))
    failed = sum(not cells.is_done(cell, self._workdir) for cell in wanted)
    measures = self._measures
    return Finished(
      self._study.config,
      self._plan,
      self._clean,
      self._holdout,
      catalogue.metrics(
        measures.perceptual.label,
        measures.extractor.label if measures.extractor is not None else "",
        self._study.config.num_samples,
      ),
      {
        name: names.EDITS if isinstance(threat, EditCells) else names.SAMPLES
        for name, threat in self._threats.items()
      },
      measures.describe(),
      dict(self._seconds),
      failed,
      self._protecting.config,
    )

  def _timed(self, part: str) -> _Timer:
    return _Timer(self._seconds, part)


class _Timer:
  def __init__(self, seconds: dict[str, float], part: str):
    self._seconds, self._part, self._start = seconds, part, 0.0

  def __enter__(self) -> None:
    self._start = time.monotonic()

  def __exit__(self, *raised: object) -> None:
    spent = time.monotonic() - self._start
    self._seconds[self._part] = self._seconds.get(self._part, 0.0) + spent


def _tolerated(error: Exception, name: str) -> str:
  """Returns the message of an error that ends only its cell; raises other errors again.

  Raises:
    Preempted, OutputError: the run was asked to stop, or nothing can be written any more.
  """
  if isinstance(error, Preempted | OutputError):
    raise error
  text = cells.explain(error)
  _log.warning("%s: failed: %s", name, text)
  _log.debug("%s", name, exc_info=error)
  return text


def protecting(study: Study) -> Study:
  """Returns the study with the model that protections attack.

  Args:
    study: `config.protection_model.path` names the model's folder; "" for the study's own model.

  Raises:
    ConfigError: the model's pictures have another size.
    MissingDataError, BadDataError: the folder is missing or damaged.
  """
  config, own = study.config, study.model.model.image_shape
  path = config.get("protection_model", {}).get("path", "")
  if not path:
    return study
  # What is taken in place of parts is the study's model's.
  changes: dict[str, Any] = {f"model.{n}": "" for n in Choices._fields if n in config.model}
  changes["model.path"] = path
  model = factory.open_model(settings.frozen(config, changes).model, config.performance)
  shape = model.model.image_shape
  if shape != own:
    (height, width), (own_height, own_width) = shape[:2], own[:2]
    raise ConfigError(
      f"config.protection_model.path: {path} is a model of {width}x{height} pictures, and "
      f"config.model.path one of {own_width}x{own_height}"
    )
  changes["model.uncond_ids"] = model.uncond_ids or ()
  return study._replace(config=settings.frozen(config, changes), model=model)


def load_pictures(config: Any, model: Model) -> tuple[ImageSet, ImageSet]:
  """Loads the pictures of `config.data` at the model's size, and the held-out ones.

  Raises:
    ConfigError: the pictures do not have the model's size.
    MissingDataError, BadDataError: as `data.sources.load`.
  """
  height, width, _ = model.model.image_shape
  if height != width:
    raise ConfigError(f"the model's pictures are {width}x{height}: the matrix takes squares")
  clean, holdout = build.load_data(settings.frozen(config, {"data.image_size": height}))
  if config.data.image_size not in (0, height):
    raise ConfigError(
      f"config.data.image_size is {config.data.image_size}, the model is for {height}: leave it 0"
    )
  return clean, holdout
