"""Classes by features and logistic regression, of pictures that no classifier has seen."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from udp_jax.metrics import style

Labelled = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def clusters() -> Labelled:
  generator = np.random.default_rng(0)
  labels = np.repeat([0, 4, 7], 12)
  centres = {0: [3.0, 0.0], 4: [0.0, 3.0], 7: [-3.0, -3.0]}
  features = np.array([centres[n] for n in labels]) + 0.3 * generator.normal(size=(36, 2))
  return features.astype(np.float32), labels


def test_clear_classes_are_told_apart(clusters: Labelled) -> None:
  features, labels = clusters
  classifier = style.fit(features, labels)
  assert classifier is not None
  assert classifier.accuracy == 1.0 and classifier.classes == (0, 4, 7)
  assert classifier.num_pictures == 36
  assert style.edit_hits(classifier, features, labels).mean() == 1.0
  assert style.edit_hits(classifier, features[::-1], labels).mean() == pytest.approx(1 / 3)


def test_samples_are_judged_by_pictures_that_no_model_trained_on(clusters: Labelled) -> None:
  features, labels = clusters
  assert style.sample_hits(style.fit(features, labels), features[:2], labels[:2]) is None
  # The others have the classes 0 and 4 only, and swap them.
  other = features[:24], np.repeat([4, 0], 12)
  classifier = style.fit(features, labels, other)
  assert classifier.num_pictures == 60
  found = style.sample_hits(classifier, features[[0, 0, 12, 24]], np.array([4, 0, 0, 7]))
  np.testing.assert_array_equal(found, [1.0, 0.0, 1.0, np.nan])


def test_accuracy_is_that_on_pictures_not_fitted_to(clusters: Labelled) -> None:
  features, labels = clusters
  mixed = np.random.default_rng(1).permutation(labels)
  assert style.fit(features, mixed).accuracy < 0.7


def test_recognising_a_picture_is_no_style() -> None:
  """Features without classes, and edits close to their pictures, score at chance."""
  generator = np.random.default_rng(2)
  labels = np.repeat(np.arange(4), 30)
  features = generator.normal(size=(120, 400))
  edits = features + 0.05 * generator.normal(size=features.shape)
  # What the classifier must not do, as it once did: be fitted to all of them.
  assert np.mean(style._fitted(features, labels)(edits) == labels) == 1.0
  hits = style.edit_hits(style.fit(features, labels), edits, labels)
  low, high = stats.binom.interval(0.99, 120, 1 / 4)
  assert low <= hits.sum() <= high


def test_recognising_the_painting_of_a_window_is_no_style() -> None:
  """Windows of ten paintings in random classes, by features without classes: no better than chance.

  In each of six draws all depends on ten paintings, so only their mean is held against chance.
  """
  generator = np.random.default_rng(3)
  paintings, found = np.repeat(np.arange(10), 32), {True: [], False: []}
  for _ in range(6):
    labels = generator.permutation(np.repeat([0, 1], 5))[paintings]
    features = generator.normal(size=(10, 64))[paintings] + 0.3 * generator.normal(size=(320, 64))
    edits = features + 0.1 * generator.normal(size=features.shape)
    for grouped, hits in found.items():
      classifier = style.fit(features, labels, groups=paintings if grouped else None)
      hits.append(style.edit_hits(classifier, edits, labels).mean())
  # Sixty paintings' worth of chance; what it must not do, as it once did, is in the second line.
  assert abs(np.mean(found[True]) - 0.5) <= 2.6 * 0.5 / 60**0.5
  assert np.mean(found[False]) > 0.95


def test_too_few_groups_of_a_class(clusters: Labelled) -> None:
  features, labels = clusters
  assert style.fit(features, labels, groups=np.arange(36) // 6) is None  # Two groups a class.
  classifier = style.fit(features, labels, groups=np.arange(36) // 4)
  assert classifier.classes == (0, 4, 7) and classifier.accuracy == 1.0


def test_too_few_pictures_of_a_class(clusters: Labelled) -> None:
  features, labels = clusters
  assert style.fit(features[:14], labels[:14]) is None  # Twelve of one class, two of another.
  assert style.fit(features[:12], labels[:12]) is None
  classifier = style.fit(features[:26], labels[:26])  # Two of the third class.
  hits = style.edit_hits(classifier, features[:26], labels[:26])
  assert classifier.classes == (0, 4) and np.isnan(hits[24:]).all() and hits[:24].mean() == 1.0
