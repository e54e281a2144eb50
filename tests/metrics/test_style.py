"""Classes by features and logistic regression."""

from __future__ import annotations

import numpy as np
import pytest

from udp_jax.metrics import style


@pytest.fixture(scope="module")
def clusters() -> tuple[np.ndarray, np.ndarray]:
  generator = np.random.default_rng(0)
  labels = np.repeat([0, 4, 7], 12)
  centres = {0: [3.0, 0.0], 4: [0.0, 3.0], 7: [-3.0, -3.0]}
  features = np.array([centres[n] for n in labels]) + 0.3 * generator.normal(size=(36, 2))
  return features.astype(np.float32), labels


def test_clear_classes_are_told_apart(clusters) -> None:
  features, labels = clusters
  classifier = style.fit(features, labels)
  assert classifier is not None
  assert classifier.accuracy == 1.0 and classifier.classes == (0, 4, 7)
  assert classifier.num_pictures == 36
  found = style.hits(classifier, features[[0, 12, 24, 0]], np.array([0, 4, 0, 5]))
  # The third is of class 7, and nobody has seen class 5.
  np.testing.assert_array_equal(found, [1.0, 1.0, 0.0, np.nan])


def test_accuracy_is_that_on_pictures_not_fitted_to(clusters) -> None:
  features, labels = clusters
  mixed = np.random.default_rng(1).permutation(labels)
  assert style.fit(features, mixed).accuracy < 0.7


def test_too_few_pictures_of_a_class(clusters) -> None:
  features, labels = clusters
  assert style.fit(features[:14], labels[:14]) is None  # Twelve of one class, two of another.
  assert style.fit(features[:12], labels[:12]) is None
