"""Purifies the pictures of every row with each purifier; "none" leaves them unchanged."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from udp_jax import purifiers
from udp_jax.data import images, manifest
from udp_jax.data.image_set import ImageSet
from udp_jax.errors import ConfigError
from udp_jax.models.context import Model
from udp_jax.ops.keys import stream
from udp_jax.report.names import NONE
from udp_jax.runtime import mesh
from udp_jax.studies import distances
from udp_jax.studies.build import Study
from udp_jax.studies.matrix import plan as plan_lib
from udp_jax.studies.matrix import subject as subject_lib
from udp_jax.studies.matrix.plan import FOLDER, Cell


class PurifiedCells:
  """Purifies the pictures of any row with one purifier, which is compiled once."""

  def __init__(self, study: Study, name: str, pictures: ImageSet, prior: Model | None = None):
    """Builds the purifier.

    Args:
      study: the study, whose model is attacked.
      name: a purifier of the plan.
      pictures: the clean pictures.
      prior: the model for purifiers that denoise with a prior; None for the attacked model.

    Raises:
      ConfigError: the purifier is unknown, or an option is missing or unusable, or it cannot take
        pictures of this size.
      MissingDataError: weights that it needs are missing.
    """
    config, model = study.config, study.model
    self._study, self._name, self._names = study, name, pictures.names
    from_files = pictures.metadata is not None
    self._grey = images.is_grey(pictures.images) if from_files else None
    if name == NONE:
      return
    self._settings = plan_lib.settings(config, "purifiers", name)
    method = self._settings.method
    # Diffusion purifiers get the common prompt, but must not learn the class of a picture.
    prompt = "" if subject_lib.asks_for_labels(config.prompt) else config.prompt
    self._prior = ""
    if prior is not None and purifiers.uses_prior(method, self._settings.options):
      model, self._prior = prior, subject_lib.path_of_prior(config)
    # A prior without text takes no prompt.
    known = {"cond": model.embeddings([prompt])}
    options = plan_lib.completed("purifiers", method, self._settings.options, known)
    self._purifier = purifiers.build(method, model.model, options)
    self._key = stream(jax.random.key(config.seed), f"purify/{name}")
    params = self._purifier.init(stream(self._key, "params"), model.params)
    if study.mesh.size > 1:
      params = mesh.replicate(params, study.mesh)
    self._params = params
    try:
      jax.eval_shape(
        self._purifier.apply,
        params,
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1)),
        jax.ShapeDtypeStruct((1, *pictures.images.shape[1:]), jnp.float32),
      )
    except ValueError as error:  # Filters raise it for sizes that they cannot take.
      raise ConfigError(f"purifier {name}: {error}") from error

  def make(self, cell: Cell, protected: np.ndarray) -> np.ndarray:
    """Returns the purified pictures of a cell, uint8 (N, H, W, 3); purifies them if needed.

    Every row uses the same random keys.

    Raises:
      ConfigError: the purifier cannot take these pictures.
      DivergedError: its loss is not finite.
    """
    if self._name == NONE:
      return protected
    study = self._study
    folder = cell.folder(study.workdir) / FOLDER
    if not manifest.is_complete(folder):
      with tqdm(
        total=len(protected), desc=f"purify {cell.name}", unit="img", disable=not study.progress
      ) as bar:
        purified = purifiers.purify(
          self._purifier,
          self._params,
          self._key,
          protected,
          np.arange(len(protected)),
          purifiers.Batching(study.config.performance.sample_batch_size, study.mesh),
          on_progress=lambda done: bar.update(done - bar.n),
        )
      if self._grey is not None:
        purified = np.where(self._grey.reshape(-1, 1, 1, 1), images.as_grey(purified), purified)
      record = {
        "method": self._settings.method,
        "row": cell.row,
        "purifier": cell.purifier,
        "options": self._settings.options,
        "seed": study.config.seed,
        "model": study.config.model.path,
      } | distances.record(self._settings.options)
      if self._prior:
        record["purifier_model"] = self._prior
      manifest.write_folder(folder, purified, self._names, record=record)
    return read(cell, study.workdir)


def read(cell: Cell, workdir: Path) -> np.ndarray:
  """Reads the finished pictures of a cell, uint8 (N, H, W, 3).

  Raises:
    MissingDataError, BadDataError: they are missing or damaged.
  """
  return manifest.read_folder(plan_lib.folder_of(cell, workdir))[0].images
