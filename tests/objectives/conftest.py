"""Ranks and types must fit in what these tests trace; pictures that several of them share."""

from __future__ import annotations

import numpy as np
import pytest

from tests.objectives.by_hand import SHAPE
from tests.strict import strictly

strict = pytest.fixture(strictly, autouse=True, scope="module")


@pytest.fixture(scope="module")
def images():
  """Six pictures of noise, in [0, 1]."""
  return np.random.default_rng(0).uniform(size=(6, *SHAPE)).astype(np.float32)
