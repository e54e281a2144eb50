"""Judging a training set by the model that learned from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from udp_jax import evaluation
from udp_jax.models import features
from udp_jax.models.base import DiffusionModel, Params


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
    """Computes nothing yet: a finished study needs nothing of it."""
    self._extractor, self._progress = extractor, progress
    self._clean, self._holdout = clean, holdout
    self._batch = config.performance.sample_batch_size
    self._loss = evaluation.denoising_loss(model)
    self._limit = config.evaluation.loss_images
    self._real: np.ndarray | None = None

  def __call__(
    self, images: np.ndarray, params: Params, samples: np.ndarray, name: str, radius_255: float
  ) -> dict[str, float | None]:
    """The numbers of one row, of budget `radius_255` (8-bit levels), and seed.

    None where one has no meaning.
    """
    if self._real is None:
      self._real = self._features(self._holdout, "held-out")
    generated = evaluation.distribution_metrics(
      self._real, self._features(samples, f"samples {name}")
    )
    own = self._features(images, f"training set {name}")
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
    metrics |= evaluation.picture_metrics(self._clean, images, radius_255)
    return {name: float(v) if np.isfinite(v) else None for name, v in metrics.items()}

  def _features(self, images: np.ndarray, what: str) -> np.ndarray:
    extractor = self._extractor._replace(label=f"features {what}")
    return features.extract(
      extractor, images, per_device_batch_size=self._batch, progress=self._progress
    )


def spread(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Mean, standard deviation and values of every number, over seeds; see `summarise`."""
  return {
    name: evaluation.summarise([np.nan if f[name] is None else f[name] for f in found])
    for name in found[0]
  }
