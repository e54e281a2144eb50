"""Measures cells: pictures, edits of them, and samples of models that were trained on them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from udp_jax.data.image_set import ImageSet
from udp_jax.errors import ConfigError
from udp_jax.metrics import denoising, latents, sets, style
from udp_jax.metrics.given import Given, Judged
from udp_jax.metrics.pictures import Comparison
from udp_jax.models import features, perceptual
from udp_jax.models.base import Params
from udp_jax.studies.build import Study
from udp_jax.studies.matrix.subject import texts_of, texts_of_classes

Values = dict[str, np.ndarray]
Scalars = dict[str, float]


class Measures:
  """Measures cells. Networks load at once, since they may be missing; the rest loads on use."""

  def __init__(self, study: Study, clean: ImageSet, holdout: ImageSet):
    """Loads the networks.

    Raises:
      ConfigError: a network is unknown, or a metric of classes does not fit the pictures.
      MissingDataError, BadDataError: the weights of a network are missing or damaged.
    """
    config, model, mesh = study.config, study.model, study.mesh
    settings, size = config.evaluation, config.performance.sample_batch_size
    assert model.measuring is not None  # `subject.load` makes it.
    self._model, self._clean, self._holdout = model, clean, holdout
    self._size, self._seed, self._config = size, config.seed, config
    self.perceptual = perceptual.load(
      settings.perceptual, weights=settings.perceptual_weights or None
    )
    self.extractor = None
    if settings.features:
      self.extractor = features.load(settings.features, weights=settings.weights or None)
    self._compare = Comparison(self.perceptual, per_device_batch_size=size, mesh=mesh)
    self._loss = denoising.DenoisingLoss(
      model.measuring,
      seed=config.seed,
      draws=settings.loss_draws,
      per_device_batch_size=size,
      mesh=mesh,
    )
    self._latents = None
    if model.is_latent:
      self._latents = latents.Latents(model.measuring, per_device_batch_size=size, mesh=mesh)
    self._given = Given(
      settings,
      classes=_classes(settings, clean),
      judged=Judged(model.measuring, model.params, self._class_conds()),
      seed=config.seed,
      per_device_batch_size=size,
      mesh=mesh,
    )

  def pictures(self, images: np.ndarray, unprotected: np.ndarray) -> Values:
    """Measures the pictures of a cell against the clean pictures.

    Args:
      images: (N, H, W, 3) uint8, pictures of the cell.
      unprotected: the clean pictures after the same purifier.
    """
    values = self._compare(self._clean.images, images)
    values["denoising_loss"] = self._loss(self._model.params, images, self._cond)
    if self._latents is not None:
      params = self._model.params
      codes = self._latents.codes(params, images)
      values["latent_distance"] = latents.latent_distance(codes, self._clean_codes)
      # In the units of the line above, regardless of the spread that the purifier leaves.
      shift = codes - self._latents.codes(params, unprotected)
      values["latent_shift"] = latents.latent_distance(self._clean_codes + shift, self._clean_codes)
      values["inconsistency"] = self._latents.reconstruction_error(params, images, codes)
    return values | self._given.pictures(images, self._clean.labels)

  def edits(self, images: np.ndarray, of_clean: np.ndarray, of_unprotected: np.ndarray) -> Values:
    """Measures edits of a cell's pictures against the edits of the clean pictures.

    Args:
      images: (N, H, W, 3) uint8, the edits of the cell's pictures.
      of_clean: edits of the clean pictures.
      of_unprotected: edits of the clean pictures after the same purifier.
    """
    values = self._compare(of_clean, images)
    # Without a purifier the two references are the same edits.
    same = of_unprotected is of_clean
    shift = values if same else self._compare(of_unprotected, images)
    values["edit_shift"] = shift["perceptual"]
    if self._classifier is not None and self._clean.labels is not None:
      found = self._features(images)
      values[style.METRIC] = style.edit_hits(self._classifier, found, self._clean.labels)
    values |= self._given.pictures(images, self._clean.labels)
    return values | self._given.against_clean(images, self._clean.images)

  def samples(
    self,
    images: np.ndarray,
    params: Params,
    *,
    labels: np.ndarray | None,
    cond: np.ndarray | None,
  ) -> tuple[Values, Scalars]:
    """Measures a trained model and its samples.

    Args:
      images: (S, H, W, 3) uint8, the samples.
      params: parameters of the trained model.
      labels: (S,), the class that each sample was prompted for, or None.
      cond: (N, ...), prompts of the clean pictures, the same as in training.
    """
    values = {"loss_clean": self._loss(params, self._clean.images, cond)}
    if holdout := len(self._holdout.images):
      # Prompts for the held-out pictures: those of the clean pictures may name another class.
      repeated = None if cond is None else np.resize(cond, (holdout, *cond.shape[1:]))
      values["loss_holdout"] = self._loss(params, self._holdout.images, repeated)
    values |= self._given.samples(images, labels, self._clean.images)
    if self.extractor is None:
      return values, {}
    found, known = self._features(images), self._real
    real = np.concatenate(known)
    values["nearest_clean"] = sets.nearest(found, known[0])
    if holdout:
      values["nearest_holdout"] = sets.nearest(found, known[1])
    # Shares inside of balls depend on how many pictures there are, as distances do.
    some_real, some = sets.equal(real, found, seed=self._seed)
    values["precision"] = sets.precision_flags(some_real, some)
    values["recall"] = sets.precision_flags(some, some_real)
    if self._classifier is not None and labels is not None:
      hits = style.sample_hits(self._classifier, found, labels)
      values |= {} if hits is None else {style.METRIC: hits}
    return values, sets.distances(real, found, seed=self._seed) | {sets.COUNT: float(len(some))}

  def describe(self) -> dict[str, Any]:
    """Returns the networks that the numbers depend on, for the record."""
    described: dict[str, Any] = {
      "perceptual": {"label": self.perceptual.label, "revision": self.perceptual.revision},
    }
    if self.extractor is not None:
      described["features"] = {
        "label": self.extractor.label,
        "revision": self.extractor.revision,
      }
    if self._classifier is not None:
      described["style_classifier"] = {
        "accuracy_out_of_fold": self._classifier.accuracy,
        "classes": len(self._classifier.classes),
        "pictures": self._classifier.num_pictures,
      }
    return described | self._given.describe()

  def _class_conds(self) -> np.ndarray | None:
    """Prompts of the classes, encoded only on use: a text encoder is slow to compile."""
    if not self._config.evaluation.get("classifier_draws", 0):
      return None
    texts = texts_of_classes(self._config.prompt, self._clean)
    return self._model.embeddings(texts) if texts else None

  @cached_property
  def _cond(self) -> np.ndarray | None:
    return self._model.embeddings(texts_of(self._config.prompt, self._clean))

  @cached_property
  def _clean_codes(self) -> np.ndarray:
    assert self._latents is not None
    return self._latents.codes(self._model.params, self._clean.images)

  @cached_property
  def _real(self) -> tuple[np.ndarray, np.ndarray]:
    holdout = self._holdout.images
    clean = self._features(self._clean.images)
    return clean, self._features(holdout) if len(holdout) else clean[:0]

  @cached_property
  def _classifier(self) -> Any:
    if self._clean.labels is None or self.extractor is None:
      return None
    clean, holdout = self._real
    others = None if self._holdout.labels is None else (holdout, self._holdout.labels)
    groups = self._clean.groups
    return style.fit(clean, self._clean.labels, others, groups=groups, seed=self._seed)

  def _features(self, images: np.ndarray) -> np.ndarray:
    assert self.extractor is not None
    return features.extract(self.extractor, images, per_device_batch_size=self._size)


def _classes(settings: Any, clean: ImageSet) -> list[str] | None:
  """Returns the names, by label, of the classes that a classifier has to tell apart.

  Raises:
    ConfigError: with so few classes no answer can be wrong. Raised before any cell is made.
  """
  names = clean.origin.get("classes") or []
  if settings.get("classifier_draws", 0) and len(names) == 1:
    raise ConfigError("config.evaluation.classifier_draws: the pictures are all of one class")
  top = settings.get("clip_top", 1)
  if settings.get("clip", "") and len(names) > 1 and not 1 <= top < len(names):
    raise ConfigError(
      f"config.evaluation.clip_top is {top}; with {len(names)} classes it is 1 to {len(names) - 1}"
    )
  return names or None
