"""Runs the matrix: every part that is not on disk yet, cell by cell.

What fails is written down and left; the next run tries it again. What is killed loses the part that
was being made. All numbers are read back from the cells' files in the end.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from udp_jax import run_config, study
from udp_jax.data import manifest
from udp_jax.data.image_set import ImageSet
from udp_jax.errors import ConfigError, OutputError, Preempted
from udp_jax.matrix import catalogue, cells, measuring, purifying, threatening
from udp_jax.matrix import plan as plan_lib
from udp_jax.matrix import subject as subject_lib
from udp_jax.matrix.plan import NONE, Cell, Plan
from udp_jax.matrix.purifying import PurifiedCells
from udp_jax.matrix.subject import Subject
from udp_jax.matrix.threatening import EditCells, TrainCells
from udp_jax.study import CLEAN

_log = logging.getLogger(__name__)

_NO_REFERENCE = "the cell of the clean pictures failed: nothing to compare with"


class Finished(NamedTuple):
  """What a run leaves to the report.

  Attributes:
    plan: what was asked for.
    clean: the pictures.
    holdout: the others.
    metrics: by kind of cell.
    kinds: of each threat, "edits" or "samples".
    networks: that the numbers depend on.
    seconds: that this run spent, by part.
    failed: number of cells without numbers.
  """

  plan: Plan
  clean: ImageSet
  holdout: ImageSet
  metrics: dict[str, list[catalogue.Metric]]
  kinds: dict[str, str]
  networks: dict[str, Any]
  seconds: dict[str, float]
  failed: int


def run_matrix(config: Any, workdir: Path, plan: Plan, *, progress: bool = True) -> Finished:
  """Makes and measures every cell of a plan that is not there yet.

  Args:
    config: of the matrix.
    workdir: the folder of this matrix; one folder, one config.
    plan: which cells.
    progress: show bars.

  Raises:
    UserError: a setting that does not fit, missing pictures or weights, or a full disk. Everything
      is built before anything is made, so that this does not come after hours.
    loop.Preempted: the process was asked to stop.
  """
  matrix = _Matrix(config, workdir, plan, progress)
  matrix.make_pictures()
  for name in plan.threats:
    matrix.make_threat(name)
  return matrix.finished()


class _Matrix:
  def __init__(self, config: Any, workdir: Path, plan: Plan, progress: bool):
    self._config, self._workdir, self._plan, self._progress = config, workdir, plan, progress
    self._seconds: dict[str, float] = {}
    subject = subject_lib.load(config)
    self._subject = subject
    for row in plan.rows:
      if row != CLEAN:
        study.build_protection(config, row, subject.model, subject.params)
    self._clean, self._holdout = load_pictures(config, subject)
    self._purifiers = {
      name: PurifiedCells(config, name, subject, self._clean) for name in plan.purifiers
    }
    self._threats = {
      name: threatening.build(config, name, subject, self._clean) for name in plan.threats
    }
    mesh = study.make_mesh(config)
    self._measures = measuring.Measures(config, subject, self._clean, self._holdout, mesh)
    run_config.check(config, workdir, self._clean)
    study.write_pictures(self._clean, workdir / "clean")
    if len(self._holdout.images):
      study.write_pictures(self._holdout, workdir / "holdout")
    # Why pictures of a row could not be protected, or not be purified.
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
    """Protected and purified pictures of all rows, and what is measured on them."""
    cond = self._subject.embeddings(subject_lib.texts_of(self._config.prompt, self._clean))
    for row in self._plan.rows:
      images: np.ndarray | None = None
      error = ""
      with self._timed("protect"):
        try:
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
    return study.protect_row(
      self._config,
      row,
      self._clean,
      self._workdir,
      self._subject.model,
      self._subject.params,
      cond=cond,
      progress=self._progress,
    )

  def _make_picture_cell(self, cell: Cell, protected: np.ndarray) -> None:
    try:
      with self._timed("purify"):
        images = self._purifiers[cell.purifier].make(
          cell, protected, self._workdir, progress=self._progress
        )
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
    except Exception as raised:  # The pictures are there: threats can be tried on them.
      cells.write_failure(cell, self._workdir, f"measure: {_tolerated(raised, cell.name)}")

  def _give_up(self, cell: Cell, error: str) -> None:
    cells.write_failure(cell, self._workdir, error)
    self._missing[cell.row, cell.purifier] = error

  def make_threat(self, name: str) -> None:
    """All cells of one threat."""
    threat = self._threats[name]
    reference: dict[tuple[str, int], np.ndarray] = {}
    wanted = [cell for cell in plan_lib.threat_cells(self._plan, name)]
    for cell in wanted:
      if (missing := self._missing.get((cell.row, cell.purifier))) is not None:
        cells.write_failure(cell, self._workdir, f"no pictures: {missing}")
        continue
      # What others are compared with is read even when its own cell is finished.
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
    images = threat.make(cell, self._pictures(cell), self._workdir, progress=self._progress)
    if cell.row == CLEAN:
      reference[cell.purifier, cell.seed] = images
    whole, purified = (reference.get((name, cell.seed)) for name in (NONE, cell.purifier))
    if whole is None or purified is None:
      raise RuntimeError(_NO_REFERENCE)
    if measure:
      cells.write(cell, self._workdir, self._measures.edits(images, whole, purified))

  def _make_samples(self, threat: TrainCells, cell: Cell) -> None:
    pictures = self._pictures(cell)
    samples = threat.make(cell, pictures, self._workdir, progress=self._progress)
    # At once if it was trained a moment ago, from its last checkpoint.
    params = threat.params(cell, pictures, self._workdir, progress=self._progress)
    values, scalars = self._measures.samples(
      samples, params, labels=threat.labels, cond=threat.loss_cond
    )
    cells.write(cell, self._workdir, values, scalars)
    threat.forget(cell, self._workdir)

  def _pictures(self, cell: Cell) -> np.ndarray:
    return purifying.read(cell.pictures, self._workdir)

  def finished(self) -> Finished:
    """Counts what failed and names the metrics."""
    wanted = [*plan_lib.picture_cells(self._plan)]
    for name in self._plan.threats:
      wanted.extend(plan_lib.threat_cells(self._plan, name))
    failed = sum(not cells.is_done(cell, self._workdir) for cell in wanted)
    measures = self._measures
    return Finished(
      self._plan,
      self._clean,
      self._holdout,
      catalogue.metrics(
        measures.perceptual.label,
        measures.extractor.label if measures.extractor is not None else "",
        self._config.num_samples,
      ),
      {
        name: catalogue.EDITS if isinstance(threat, EditCells) else catalogue.SAMPLES
        for name, threat in self._threats.items()
      },
      measures.describe(),
      dict(self._seconds),
      failed,
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
  """The message of an error that ends a cell and not the run; others are raised again.

  Raises:
    loop.Preempted, OutputError: the run was asked to stop, or nothing can be written any more.
  """
  if isinstance(error, Preempted | OutputError):
    raise error
  text = cells.explain(error)
  _log.warning("%s: failed: %s", name, text)
  _log.debug("%s", name, exc_info=error)
  return text


def load_pictures(config: Any, subject: Subject) -> tuple[ImageSet, ImageSet]:
  """The pictures of `config.data` at the model's size, and the held-out ones.

  Raises:
    ConfigError: a size that the model does not have.
    MissingDataError, BadDataError: see `data.sources.load`.
  """
  height, width, _ = subject.model.image_shape
  if height != width:
    raise ConfigError(f"the model's pictures are {width}x{height}: the matrix takes squares")
  sized = config.copy_and_resolve_references()
  with sized.unlocked():
    sized.data.image_size = height
  clean, holdout = study.load_data(sized)
  if config.data.image_size not in (0, height):
    raise ConfigError(
      f"config.data.image_size is {config.data.image_size}, the model is for {height}: leave it 0"
    )
  return clean, holdout
