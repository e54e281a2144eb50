"""What threats are given: masks."""

from __future__ import annotations

import numpy as np
import pytest

from udp_jax.errors import ConfigError
from udp_jax.studies.matrix import threatening


def test_masks() -> None:
  centre, around = (threatening._masks(which, 2, (8, 12)) for which in ("centre", "surroundings"))
  assert centre.shape == (2, 8, 12, 1)
  assert centre[0, 2:6, 3:9].all() and centre.sum() == 2 * 4 * 6
  np.testing.assert_array_equal(centre + around, 1.0)
  with pytest.raises(ConfigError, match="unknown mask"):
    threatening._masks("hat", 1, (8, 8))
