"""Metrics that a config asks for by giving weights or draws; what is not given is not measured.

  config.evaluation.clip               folder of a CLIP model: "clip_style", "clip_likeness"
  config.evaluation.clip_template      its text of a class, "a painting by {}"
  config.evaluation.clip_top           classes among which the right one must be, 1
  config.evaluation.face               file of a face network: "identity"
  config.evaluation.face_sha256        of that file, where it is a `.pth`
  config.evaluation.classifier_draws   timesteps of the diffusion classifier: "prompt_hits"; 0: none

Nothing takes another's name: without CLIP there is no "clip_style", and the offline classifier's
"style" is there all the same.
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
  """The diffusion model of the classifier, encoding to the mean of the posterior.

  Attributes:
    model: told of prompts.
    params: its parameters.
    class_conds: (K, ...), embeddings of one prompt a class; None where prompts name no classes.
  """

  model: DiffusionModel
  params: Params
  class_conds: np.ndarray | None


class Given:
  """The metrics of `config.evaluation` that need weights or draws. Networks are loaded at once."""

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
      evaluation: `config.evaluation`; fields that it lacks are at `DEFAULTS`.
      classes: names of the classes, by label; None where pictures have none.
      judged: for the diffusion classifier; None for models without prompts.
      seed: of the classifier's noises.
      per_device_batch_size: pictures that a device works on at a time; changes speed only.
      mesh: devices.

    Raises:
      ConfigError: a metric of classes without classes, or a setting that cannot be used.
      MissingDataError, BadDataError: the weights.
    """
    settings = {name: evaluation.get(name, value) for name, value in DEFAULTS.items()}
    options: dict[str, Any] = {"per_device_batch_size": per_device_batch_size, "mesh": mesh}
    self._classes, self._judged, self._top = classes, judged, settings["clip_top"]
    self._revisions: dict[str, str] = {}
    self._clip = self._face = self._classifier = None
    self._texts: list[str] = []
    if settings["clip"]:
      found = clip.load(settings["clip"])
      self._clip, self._revisions["clip"] = CLIPScores(found, **options), found.revision
      self._texts = [settings["clip_template"].format(name) for name in classes or ()]
    if settings["face"]:
      face = face_embedding.load(settings["face"], sha256=settings["face_sha256"])
      self._face, self._revisions["face"] = IdentitySimilarity(face, **options), face.revision
    if draws := settings["classifier_draws"]:
      if judged is None or judged.class_conds is None:
        raise ConfigError(
          "config.evaluation.classifier_draws: the prompt has to name the pictures' classes, as in "
          "'a painting by {label}'"
        )
      self._classifier = DiffusionClassifier(judged.model, seed=seed, draws=draws, **options)

  def pictures(self, images: np.ndarray, labels: np.ndarray | None) -> Values:
    """Of pictures or edits of them, uint8 (N, H, W, 3), of classes `labels` (N,)."""
    values: Values = {}
    if labels is None:
      return values
    if self._clip is not None and len(self._texts) > 1:
      values["clip_style"] = self._clip.hits(images, labels, self._texts, top=self._top)
    if self._classifier is not None:
      assert self._judged is not None and self._judged.class_conds is not None  # When it was made.
      found = self._classifier(self._judged.params, images, self._judged.class_conds)
      values["prompt_hits"] = diffusion_classifier.hits(found, labels)
    return values

  def against_clean(self, images: np.ndarray, clean: np.ndarray) -> Values:
    """Of edits uint8 (N, H, W, 3) against the pictures before protection, one each."""
    values: Values = {}
    if self._clip is not None:
      values["clip_likeness"] = self._clip.likeness(images, clean)
    if self._face is not None:
      values["identity"] = self._face.each(images, clean)
    return values

  def samples(self, images: np.ndarray, labels: np.ndarray | None, clean: np.ndarray) -> Values:
    """Of samples uint8 (S, H, W, 3) of a model that should have learned one person's pictures."""
    values = self.pictures(images, labels)
    if self._face is not None:
      values["identity"] = self._face.to_person(images, clean)
    return values

  def describe(self) -> dict[str, Any]:
    """Which weights the numbers depend on, for the record."""
    return {name: {"revision": revision} for name, revision in self._revisions.items()}
