"""Judges a training set by the model that was trained on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from udp_jax.metrics import denoising, sets, statistics, visibility
from udp_jax.models import features
from udp_jax.models.base import DiffusionModel, Params
from udp_jax.runtime import files


def is_judged(path: Path) -> bool:
  """Whether a record is there, and of equal counts: earlier versions compared all of either."""
  return path.exists() and sets.COUNT in files.read_json(path)


class Judge:
  """Measures one training set, its model and its samples against the held-out clean pictures."""

  def __init__(
    self,
    config: Any,
    clean: np.ndarray,
    holdout: np.ndarray,
    model: DiffusionModel,
    extractor: features.FeatureExtractor,
    *,
    progress: bool = True,
  ):
    """Computes nothing yet, because a finished study never calls the judge."""
    self._extractor, self._progress = extractor, progress
    self._clean, self._holdout = clean, holdout
    self._batch = config.performance.sample_batch_size
    self._loss = denoising.denoising_loss(model)
    self._limit = config.evaluation.loss_images
    self._real: np.ndarray | None = None

  def __call__(
    self, images: np.ndarray, params: Params, samples: np.ndarray, name: str, radius_255: float
  ) -> dict[str, float | None]:
    """Returns the metrics of one row and seed; None for a metric that is not finite.

    `radius_255` is the budget of the row in 8-bit levels.
    """
    losses = {
      "loss_training_set": self._loss(params, images[: self._limit]),
      "loss_clean_holdout": self._loss(params, self._holdout[: self._limit]),
    }
    return self.without_model(images, samples, losses, name, radius_255)

  def without_model(
    self,
    images: np.ndarray,
    samples: np.ndarray,
    losses: Mapping[str, float],
    name: str,
    radius_255: float,
  ) -> dict[str, float | None]:
    """Returns the same for a model whose losses were measured elsewhere."""
    if self._real is None:
      self._real = self._features(self._holdout, "held-out")
    generated = sets.distribution_metrics(self._real, self._features(samples, f"samples {name}"))
    own = self._features(images, f"training set {name}")
    metrics = {
      "fd_samples": generated["fd"],
      "fd_training_set": sets.distribution_metrics(self._real, own)["fd"],
      "precision": generated["precision"],
      "recall": generated["recall"],
      "mmd": generated["mmd"],
      "mmd_se": generated["mmd_se"],
      sets.COUNT: generated[sets.COUNT],
      **losses,
    }
    metrics |= visibility.picture_metrics(self._clean, images, radius_255)
    return {name: float(v) if np.isfinite(v) else None for name, v in metrics.items()}

  def _features(self, images: np.ndarray, what: str) -> np.ndarray:
    extractor = self._extractor._replace(label=f"features {what}")
    return features.extract(
      extractor, images, per_device_batch_size=self._batch, progress=self._progress
    )


def spread(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Returns what `statistics.over_seeds` does for every metric."""
  return {
    name: statistics.over_seeds([np.nan if f[name] is None else f[name] for f in found])
    for name in found[0]
  }
