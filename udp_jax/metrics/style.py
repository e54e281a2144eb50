"""Classifies pictures by style (artist, kind of picture) with features and logistic regression.

IMPRESS asks CLIP for the genre of generated pictures. Without CLIP's weights, a linear classifier
on the features of an available network replaces it. No picture is judged by a classifier that has
seen it: one fitted on the pictures whose edits it judges recognises the pictures, not their style,
and scores 1 on random features. The metric is called "style_unseen", as earlier versions
recorded "style" from such a classifier.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

METRIC = "style_unseen"
# Folds of cross-validation, and the least number of pictures of a class.
_FOLDS = 3

Predict = Any  # Features (N, D) -> class numbers (N,).


class StyleClassifier(NamedTuple):
  """Classifiers of pictures by features, for edits and for samples.

  Attributes:
    folds: (classifier, numbers of the judged pictures it has not seen), of all `classes`.
    classes: numbers of the known classes.
    accuracy: share of the judged pictures that their fold's classifier gets right, in [0, 1].
    num_pictures: number of real pictures of known classes.
    fresh: classifier fitted on the other pictures alone, for samples of a model that was trained
      on the judged ones; None if those do not have two classes of three pictures.
    fresh_classes: numbers of the classes of `fresh`.
  """

  folds: tuple[tuple[Predict, np.ndarray], ...]
  classes: tuple[int, ...]
  accuracy: float
  num_pictures: int
  fresh: Predict | None
  fresh_classes: tuple[int, ...]


def fit(
  features: np.ndarray,
  labels: np.ndarray,
  others: tuple[np.ndarray, np.ndarray] | None = None,
  *,
  groups: np.ndarray | None = None,
  seed: int = 0,
) -> StyleClassifier | None:
  """Fits classifiers to real pictures; None without two classes of at least three judged pictures.

  With groups it takes three groups a class, and no classifier judges a group that it has seen.

  Args:
    features: (N, D), features of the pictures whose edits are judged.
    labels: (N,), their class numbers. Classes of fewer than three pictures are left out.
    groups: (N,), groups of pictures that share content; None if the pictures are independent.
    others: features (M, D) and labels (M,) of further pictures, which no model trains on.
    seed: seed of the folds.
  """
  # Imported here: the import takes seconds, and few runs need style.
  from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

  known = _known(labels, groups)
  if len(known) < 2:
    return None
  more, named = others or (features[:0], labels[:0])
  judged, extra = np.flatnonzero(np.isin(labels, known)), np.isin(named, known)
  made, right = [], []
  kind = StratifiedKFold if groups is None else StratifiedGroupKFold
  folds = kind(_FOLDS, shuffle=True, random_state=seed)
  own = None if groups is None else groups[judged]
  for seen, unseen in folds.split(features[judged], labels[judged], own):
    seen, unseen = judged[seen], judged[unseen]
    if len(np.unique(labels[seen])) < len(known):
      return None  # All groups of a class are in one fold.
    predict = _fitted(
      np.concatenate([features[seen], more[extra]]), np.concatenate([labels[seen], named[extra]])
    )
    made.append((predict, unseen))
    right.append(predict(features[unseen]) == labels[unseen])
  fresh = _known(named)
  of_fresh = np.isin(named, fresh)
  return StyleClassifier(
    tuple(made),
    tuple(int(n) for n in known),
    float(np.mean(np.concatenate(right))),
    len(judged) + int(extra.sum()),
    _fitted(more[of_fresh], named[of_fresh]) if len(fresh) > 1 else None,
    tuple(int(n) for n in fresh),
  )


def edit_hits(classifier: StyleClassifier, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns (N,): 1 for edits assigned to their picture's class, else 0; NaN for unknown classes.

  Args:
    classifier: from `fit`, on the N pictures in this order.
    features: (N, D), features of one edit of each picture.
    labels: (N,), class numbers of the pictures.
  """
  found = np.full(len(labels), np.nan)
  for predict, unseen in classifier.folds:
    found[unseen] = predict(features[unseen]) == labels[unseen]
  return found


def sample_hits(
  classifier: StyleClassifier, features: np.ndarray, labels: np.ndarray
) -> np.ndarray | None:
  """Returns (S,): 1 for samples assigned to the class asked for, else 0; NaN for unknown classes.

  None if there are too few pictures that the sampled model was not trained on.
  """
  if classifier.fresh is None:
    return None
  found = (classifier.fresh(features) == labels).astype(np.float64)
  return np.where(np.isin(labels, classifier.fresh_classes), found, np.nan)


def _known(labels: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
  """Returns the classes of enough pictures, or of enough groups."""
  if groups is not None:
    labels = np.unique(np.stack([labels, groups]), axis=1)[0]
  numbers, counts = np.unique(labels, return_counts=True)
  return numbers[counts >= _FOLDS]


def _fitted(features: np.ndarray, labels: np.ndarray) -> Predict:
  from sklearn.linear_model import LogisticRegression
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler

  model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
  model.fit(features.astype(np.float64), labels)
  return lambda f: model.predict(np.asarray(f, np.float64))
