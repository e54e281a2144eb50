"""Metrics that a config enables by giving weights or draws; others are not measured.

  config.evaluation.clip               folder of a CLIP model: "clip_style", "clip_likeness"
  config.evaluation.clip_template      text of a class for CLIP, "a painting by {}"
  config.evaluation.clip_top           number of best classes that count as a hit, 1
  config.evaluation.face               file of a face network, or "sface": "identity"
  config.evaluation.face_sha256        SHA-256 of that file, if it is a `.pth`
  config.evaluation.classifier_draws   timesteps of the diffusion classifier: "prompt_hits"; 0: none

Metrics never share a name: without CLIP there is no "clip_style", while "style_unseen" of the
offline classifier is always measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from udp_jax.errors import ConfigError
from udp_jax.metrics import diffusion_classifier
from udp_jax.metrics.clip_score import CLIPScores
from udp_jax.metrics.diffusion_classifier import DiffusionClassifier
from udp_jax.metrics.identity import IdentitySimilarity
from udp_jax.models import clip, face_embedding
from udp_jax.models.base import DiffusionModel, Params

Values = dict[str, np.ndarray]

DEFAULTS: dict[str, Any] = {
  "clip": "",
  "clip_template": "a painting by {}",
  "clip_top": 1,
  "face": "",
  "face_sha256": "",
  "classifier_draws": 0,
}


class Judged(NamedTuple):
  """The diffusion model used as a classifier, encoding to the posterior mean.

  Attributes:
    model: a model with prompts.
    params: parameters of the model.
    class_conds: (K, ...), embeddings of one prompt per class; None if prompts name no classes.
  """

  model: DiffusionModel
  params: Params
  class_conds: np.ndarray | None


class Given:
  """The metrics of `config.evaluation` that need weights or draws; loads their networks."""

  def __init__(
    self,
    evaluation: Any,
    *,
    classes: Sequence[str] | None,
    judged: Judged | None,
    seed: int,
    per_device_batch_size: int,
    mesh: Mesh,
  ):
    """Loads the networks.

    Args:
      evaluation: `config.evaluation`; missing fields have their values in `DEFAULTS`.
      classes: names of the classes, by label; None if pictures have no classes.
      judged: model for the diffusion classifier; None for models without prompts.
      seed: seed of the classifier's noises.
      per_device_batch_size: pictures per device at a time; affects only speed.
      mesh: devices to run on.

    Raises:
      ConfigError: a metric needs classes but there are none, or a setting is invalid.
      MissingDataError, BadDataError: weights are missing or damaged.
    """
    settings = {name: evaluation.get(name, value) for name, value in DEFAULTS.items()}
    options: dict[str, Any] = {"per_device_batch_size": per_device_batch_size, "mesh": mesh}
    self._classes, self._judged, self._top = classes, judged, settings["clip_top"]
    self._networks: dict[str, dict[str, str]] = {}
    self._clip = self._face = self._classifier = None
    self._texts: list[str] = []
    if settings["clip"]:
      found = clip.load(settings["clip"])
      self._clip = CLIPScores(found, **options)
      self._networks["clip"] = {"revision": found.revision}
      self._texts = [settings["clip_template"].format(name) for name in classes or ()]
    if settings["face"]:
      face = face_embedding.load(settings["face"], sha256=settings["face_sha256"])
      self._face = IdentitySimilarity(face, **options)
      label = f"{face.label}; centre squares as given, no face is detected or aligned"
      self._networks["face"] = {"label": label, "revision": face.revision}
    if draws := settings["classifier_draws"]:
      if judged is None or judged.class_conds is None:
        raise ConfigError(
          "config.evaluation.classifier_draws: the prompt has to name the pictures' classes, as in "
          "'a painting by {label}'"
        )
      self._classifier = DiffusionClassifier(judged.model, seed=seed, draws=draws, **options)

  def pictures(self, images: np.ndarray, labels: np.ndarray | None) -> Values:
    """Measures pictures or their edits, uint8 (N, H, W, 3), with class labels (N,)."""
    values: Values = {}
    if labels is None:
      return values
    if self._clip is not None and len(self._texts) > 1:
      values["clip_style"] = self._clip.hits(images, labels, self._texts, top=self._top)
    if self._classifier is not None:
      assert self._judged is not None and self._judged.class_conds is not None  # See `__init__`.
      found = self._classifier(self._judged.params, images, self._judged.class_conds)
      values["prompt_hits"] = diffusion_classifier.hits(found, labels)
    return values

  def against_clean(self, images: np.ndarray, clean: np.ndarray) -> Values:
    """Measures edits, uint8 (N, H, W, 3), against one unprotected picture each."""
    values: Values = {}
    if self._clip is not None:
      values["clip_likeness"] = self._clip.likeness(images, clean)
    if self._face is not None:
      values["identity"] = self._face.each(images, clean)
    return values

  def samples(self, images: np.ndarray, labels: np.ndarray | None, clean: np.ndarray) -> Values:
    """Measures samples, uint8 (S, H, W, 3), from a model trained on one person's pictures."""
    values = self.pictures(images, labels)
    if self._face is not None:
      values["identity"] = self._face.to_person(images, clean)
    return values

  def describe(self) -> dict[str, Any]:
    """Returns the networks that the numbers depend on, for the record."""
    return dict(self._networks)
