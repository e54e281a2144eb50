"""Which class (artist, kind of picture) a picture looks like: features and logistic regression.

IMPRESS asks CLIP for the genre of generated pictures. Without CLIP's weights, a linear classifier
on the features of a network at hand takes its place; it is called style accuracy, and comes with
the accuracy that it has on real pictures that it was not fitted to.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

# Fewer pictures of a class cannot be told apart and checked by cross-validation.
_FOLDS = 3


class StyleClassifier(NamedTuple):
  """A classifier of pictures by their features.

  Attributes:
    predict: features (N, D) -> class numbers (N,).
    accuracy: on real pictures in cross-validation, in [0, 1].
    classes: numbers of the classes that it knows.
    num_pictures: real ones that it was fitted to.
  """

  predict: Any
  accuracy: float
  classes: tuple[int, ...]
  num_pictures: int


def fit(features: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> StyleClassifier | None:
  """Fits a classifier to real pictures; None where there are not two classes of three pictures.

  Args:
    features: (N, D).
    labels: (N,) class numbers. Classes of fewer than three pictures are left out.
    seed: of the folds.
  """
  # Seconds to import, and few runs ask for style.
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
  """1 for each picture that is taken for its own class, else 0; NaN for a class not known; (N,)."""
  found = (classifier.predict(features) == labels).astype(np.float64)
  return np.where(np.isin(labels, classifier.classes), found, np.nan)
