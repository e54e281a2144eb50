"""Purified pictures of every row, by each purifier; "none" leaves them as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from udp_jax import parallel, purifiers, study
from udp_jax.data import images, manifest
from udp_jax.data.image_set import ImageSet
from udp_jax.matrix import plan as plan_lib
from udp_jax.matrix import subject as subject_lib
from udp_jax.matrix.plan import NONE, Cell
from udp_jax.matrix.subject import Subject
from udp_jax.randomness import stream
from udp_jax.study import CLEAN

FOLDER = "pictures"


class PurifiedCells:
  """Purified pictures of any row, by one purifier, which is compiled once."""

  def __init__(self, config: Any, name: str, subject: Subject, pictures: ImageSet):
    """Makes the purifier.

    Raises:
      ConfigError: an unknown purifier, or a missing or unusable option.
      MissingDataError: weights that it needs are not there.
    """
    self._config, self._name, self._names = config, name, pictures.names
    from_files = pictures.metadata is not None
    self._grey = images.is_grey(pictures.images) if from_files else None
    if name == NONE:
      return
    self._settings = plan_lib.settings(config, "purifiers", name)
    method = self._settings.method
    # Diffusion purifiers are told what everybody is told; classes are not theirs to know.
    prompt = "" if subject_lib.asks_for_labels(config.prompt) else config.prompt
    known = {"cond": subject.embeddings([prompt])}
    options = plan_lib.completed("purifiers", method, self._settings.options, known)
    self._purifier = purifiers.build(method, subject.model, options)
    self._key = stream(jax.random.key(config.seed), f"purify/{name}")
    params = self._purifier.init(stream(self._key, "params"), subject.params)
    self._mesh = study.make_mesh(config)
    if self._mesh.size > 1:
      params = parallel.replicate(params, self._mesh)
    self._params = params

  def make(self, cell: Cell, protected: np.ndarray, workdir: Path, *, progress: bool) -> np.ndarray:
    """The purified pictures of a cell, uint8 (N, H, W, 3), made now or before.

    The same keys for every row.

    Raises:
      ConfigError: pictures that the purifier cannot take.
      DivergedError: its loss is not finite.
    """
    if self._name == NONE:
      return protected
    folder = cell.folder(workdir) / FOLDER
    if not manifest.is_complete(folder):
      with tqdm(
        total=len(protected), desc=f"purify {cell.name}", unit="img", disable=not progress
      ) as bar:
        purified = purifiers.purify(
          self._purifier,
          self._params,
          self._key,
          protected,
          np.arange(len(protected)),
          per_device_batch_size=self._config.performance.sample_batch_size,
          mesh=self._mesh,
          on_progress=lambda done: bar.update(done - bar.n),
        )
      if self._grey is not None:
        purified = np.where(self._grey.reshape(-1, 1, 1, 1), images.as_grey(purified), purified)
      record = {
        "method": self._settings.method,
        "row": cell.row,
        "purifier": cell.purifier,
        "options": self._settings.options,
        "seed": self._config.seed,
        "model": self._config.model.path,
      }
      manifest.write_folder(folder, purified, self._names, record=record)
    return read(cell, workdir)


def read(cell: Cell, workdir: Path) -> np.ndarray:
  """The finished pictures of a cell, uint8 (N, H, W, 3).

  Raises:
    MissingDataError, BadDataError: they are not there, or damaged.
  """
  return manifest.read_folder(folder_of(cell, workdir))[0].images


def folder_of(cell: Cell, workdir: Path) -> Path:
  """Where the pictures of a cell are: those of "none" are the protected, or the clean ones."""
  if cell.purifier == NONE:
    return workdir / "clean" if cell.row == CLEAN else workdir / "protected" / cell.row
  return Cell(cell.row, cell.purifier).folder(workdir) / FOLDER
