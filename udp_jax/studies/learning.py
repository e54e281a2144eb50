"""What a model learns from pictures of any size: windows of every row fine-tune it, then it draws.

  workdir/learned/<row>/samples/         pictures that the fine-tuned model drew
  workdir/learned/<row>/evaluation.json  written last
  workdir/learned/<row>/checkpoints      removed when it is done

Every row uses the same windows and the same draws, so the fine-tuned models differ only by the
pictures that they learned from.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from udp_jax import registry, threats
from udp_jax.data import images, manifest, windows
from udp_jax.data.marks import CLEAN
from udp_jax.errors import ConfigError
from udp_jax.metrics import denoising, sets
from udp_jax.models import features
from udp_jax.runtime import files
from udp_jax.runtime import workdir as workdir_lib
from udp_jax.stages import sample, train
from udp_jax.stages.tiles import Pictures
from udp_jax.threats.base import Threat

# The name of a threat in `config.threat` of studies whose pictures nothing learns from.
NONE = "scratch"


def is_asked(config: Any) -> bool:
  """Whether a study of pictures of any size fine-tunes its model on them."""
  return config.threat.name != NONE


class Learned(NamedTuple):
  """What was learned from one row.

  Attributes:
    samples: uint8 (N, S, S, 3), drawn by the fine-tuned model.
    metrics: "loss_learned", the fine-tuned model's loss on the clean windows, and
      "nearest_clean", the mean distance of a sample from the nearest clean window.
  """

  samples: np.ndarray
  metrics: dict[str, float]


class Learner:
  """Fine-tunes the model of a study on windows of any row; it is compiled once."""

  def __init__(self, study: Any, pictures: Pictures):
    """Builds the threat; nothing is computed yet.

    Args:
      study: a `studies.build.Study`. `config.threat` says how to fine-tune; `config.pictures` how
        many `windows`, their `smallest_window` in pixels, and the largest pictures that are
        learned (`learn_up_to`, their shorter side; 0 for all).
      pictures: the pictures, clean and with captions.

    Raises:
      ConfigError: the threat or an option is unknown, the threat edits pictures, or no picture is
        small enough.
      MissingDataError: the weights of the features are missing.
    """
    config = study.config
    self._study, self._pictures = study, pictures
    asked = dict(config.threat.options)
    known = registry.fields(registry.constructor("udp_jax.threats", config.threat.name))
    known_options = {n: v for n, v in study.model.for_options.items() if n in known}
    threat = threats.build(config.threat.name, study.model.model, known_options | asked)
    if not isinstance(threat, Threat) or not threat.needs_params or threat.needs_token_ids:
      raise ConfigError(f"config.threat.name: {config.threat.name} does not fine-tune the U-Net")
    self._threat = threat
    self._loss = denoising.denoising_loss(study.model.model, seed=config.seed + 1)
    side = config.pictures.learn_up_to
    self.files = tuple(
      file for file in pictures.found.files if not side or min(file.height, file.width) <= side
    )
    if not self.files:
      raise ConfigError(f"config.pictures.learn_up_to is {side}: no picture is that small")
    self._extractor = features.load(
      config.evaluation.features, weights=config.evaluation.weights or None
    )

  def learned(self, row: str) -> Learned:
    """Returns what is learned from a row; fine-tunes, samples and measures unless it is on disk.

    Raises:
      DivergedError, OutputError, Preempted: as `stages.train.train`.
    """
    folder = self._study.workdir / "learned" / row
    path = folder / "evaluation.json"
    if not path.exists():
      files.write_json(path, self._make(row, folder))
      workdir_lib.discard_checkpoints(folder / "checkpoints")
    return Learned(manifest.read_folder(folder / "samples")[0].images, files.read_json(path))

  def _make(self, row: str, folder: Path) -> dict[str, float]:
    study, threat = self._study, self._threat
    config, base = study.config, study.model.params
    assert base is not None
    seed = config.threat.seeds[0]
    every = config.checkpoint.every_steps
    run = study.run(f"threat/{seed}", folder, f"learn from {row}", checkpoint_every=every)
    data = train.training_batches(
      self.windows(row), self._cond, config.global_batch_size, prior=None
    )
    params = threat.trainable.merge(train.train(threat, data, base, run), base)
    samples = sample.sample(
      threat.sample,
      params,
      folder / "samples",
      run.drawing("sample").at(folder, f"draw what {row} taught"),
      num_samples=config.num_samples,
      asked=sample.Asked(
        self._cond,
        study.model.embeddings([""]),
        {"method": "samples", "row": row, "seed": seed},
      ),
    )
    limit = config.evaluation.loss_images
    clean = self.windows(CLEAN)[:limit]
    cond = None if self._cond is None else self._cond[: len(clean)]
    distances = sets.nearest(self._features(samples), self._clean_features)
    return {
      "loss_learned": float(self._loss(params, clean, cond)),
      "nearest_clean": float(distances.mean()),
    }

  def windows(self, row: str) -> np.ndarray:
    """Returns the windows of a row's saved pictures, uint8 (N, S, S, 3): the same of every row."""
    config, found = self._study.config, self.files
    size = self._study.model.model.image_shape[0]
    folder = self._pictures.clean if row == CLEAN else self._study.workdir / "protected" / row
    each = -(-config.pictures.windows // len(found))
    made = []
    for number, file in enumerate(found):
      pixels = images.read_image(folder / f"{file.name}.png").pixels
      generator = np.random.default_rng((config.seed, number))
      made += windows.cut(generator, pixels, each, size, config.pictures.smallest_window)
    # In turn, so that every batch has windows of all pictures.
    order = np.arange(len(made)).reshape(len(found), each).T.ravel()
    return np.stack(made)[order]

  @cached_property
  def _cond(self) -> np.ndarray | None:
    if self._pictures.cond_of is None:
      return None
    found = self.files
    each = -(-self._study.config.pictures.windows // len(found))
    return np.tile(np.stack([self._pictures.cond_of(file) for file in found]), (each, 1, 1))

  @cached_property
  def _clean_features(self) -> np.ndarray:
    return self._features(self.windows(CLEAN))

  def _features(self, pictures: np.ndarray) -> np.ndarray:
    size = self._study.config.performance.sample_batch_size
    return features.extract(self._extractor, pictures, per_device_batch_size=size)
