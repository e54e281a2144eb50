"""XL's text and sizes as one array: in, out, and what stands for a picture's own size."""

from __future__ import annotations

import numpy as np
import pytest

from udp_jax.errors import ConfigError
from udp_jax.models import conditioning


@pytest.mark.parametrize(("pooled_dim", "rows"), [(2, 1), (3, 2), (10, 2), (11, 3)])
def test_parts_come_back(pooled_dim: int, rows: int) -> None:
  draw = np.random.default_rng(0).normal
  text, pooled = np.float32(draw(size=(2, 3, 5, 8))), np.float32(draw(size=(2, 3, pooled_dim)))
  sizes = np.float32(draw(size=(2, 3, 6)))
  packed = conditioning.pack(text, pooled, sizes)
  assert conditioning.num_rows(pooled_dim, 8) == rows and packed.shape == (2, 3, rows + 5, 8)
  for found, given in zip(conditioning.unpack(packed, pooled_dim), (text, pooled, sizes)):
    np.testing.assert_array_equal(found, given)


def test_sizes_are_the_pictures_own_or_given() -> None:
  packed = conditioning.pack(np.ones((2, 5, 8), np.float32), np.ones((2, 10), np.float32))
  own = conditioning.resolved(conditioning.unpack(packed, 10).sizes, 48, 64)
  np.testing.assert_array_equal(own, [[48, 64, 0, 0, 48, 64]] * 2)
  whole = conditioning.with_sizes(packed, (1024, 768))
  cut = conditioning.with_sizes(packed[:1], (1024, 768), crop=(0, 16), target=(512, 512))
  for given, expected in (
    (whole, [1024, 768, 0, 0, 1024, 768]),
    (cut, [1024, 768, 0, 16, 512, 512]),
  ):
    found = conditioning.unpack(given, 10)
    resolved = conditioning.resolved(found.sizes, 48, 64)
    np.testing.assert_array_equal(resolved, [expected] * len(given))
    np.testing.assert_array_equal(found.embeddings, np.ones((len(given), 5, 8)))
    np.testing.assert_array_equal(found.pooled, np.ones((len(given), 10)))


def test_what_is_no_conditioning() -> None:
  with pytest.raises(ConfigError, match=r"cond \(1, 2, 8\) holds no text"):
    conditioning.unpack(np.zeros((1, 2, 8)), 10)
  with pytest.raises(ConfigError, match="at least 1x1, not"):
    conditioning.with_sizes(np.zeros((1, 4, 8)), (0, 5))
