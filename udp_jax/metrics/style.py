"""Classifies pictures by style (artist, kind of picture) with features and logistic regression.

IMPRESS asks CLIP for the genre of generated pictures. Without CLIP's weights, a linear classifier
on the features of an available network replaces it. The result is called style accuracy and is
reported with the classifier's accuracy on held-out real pictures.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

# Cross-validation needs at least this many pictures per class.
_FOLDS = 3


class StyleClassifier(NamedTuple):
  """A classifier of pictures by features.

  Attributes:
    predict: features (N, D) -> class numbers (N,).
    accuracy: share of real pictures classified correctly in cross-validation, in [0, 1].
    classes: numbers of the known classes.
    num_pictures: number of real pictures used for fitting.
  """

  predict: Any
  accuracy: float
  classes: tuple[int, ...]
  num_pictures: int


def fit(features: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> StyleClassifier | None:
  """Fits a classifier to real pictures; None without two classes of at least three pictures.

  Args:
    features: (N, D), features of the pictures.
    labels: (N,), class numbers. Classes of fewer than three pictures are left out.
    seed: seed of the folds.
  """
  # Imported here: the import takes seconds, and few runs need style.
  from sklearn.linear_model import LogisticRegression
  from sklearn.model_selection import StratifiedKFold, cross_val_score
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler

  numbers, counts = np.unique(labels, return_counts=True)
  known = numbers[counts >= _FOLDS]
  if len(known) < 2:
    return None
  kept = np.isin(labels, known)
  features, labels = features[kept].astype(np.float64), labels[kept]
  model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
  folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
  accuracy = float(np.mean(cross_val_score(model, features, labels, cv=folds)))
  model.fit(features, labels)
  return StyleClassifier(
    lambda f: model.predict(np.asarray(f, np.float64)),
    accuracy,
    tuple(int(n) for n in known),
    len(labels),
  )


def hits(classifier: StyleClassifier, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns (N,): 1 for pictures assigned to their own class, else 0; NaN for unknown classes."""
  found = (classifier.predict(features) == labels).astype(np.float64)
  return np.where(np.isin(labels, classifier.classes), found, np.nan)
